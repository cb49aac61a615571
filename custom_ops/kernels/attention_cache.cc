#include "custom_ops/kernels/attention_cache.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace tfmot_ternary {
namespace {

constexpr size_t kAlignment = 64;

// Far beyond what one layer needs, and products of the sizes stay inside 64 bits.
constexpr double kMaxBytes = 1099511627776.0;

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

size_t ElementBytes(CacheType type) {
  return type == CacheType::kFloat32 ? 4 : type == CacheType::kFloat16 ? 2 : 1;
}

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

bool ParseCacheType(const char* token, CacheType* type) {
  if (std::strcmp(token, "float32") == 0) {
    *type = CacheType::kFloat32;
  } else if (std::strcmp(token, "float16") == 0) {
    *type = CacheType::kFloat16;
  } else if (std::strcmp(token, "int8") == 0) {
    *type = CacheType::kInt8;
  } else {
    return false;
  }
  return true;
}

AttentionCache::AttentionCache(const CacheShape& shape)
    : shape_(shape),
      blocks_((shape.length + kLanes - 1) / kLanes),
      padded_dim_(RoundUp(shape.head_dim, kLanes)),
      key_block_(kLanes * RoundUp(shape.head_dim, shape.type == CacheType::kInt8 ? 4 : 1)) {}

AttentionCache::~AttentionCache() { std::free(memory_); }

std::unique_ptr<AttentionCache> AttentionCache::Make(const CacheShape& shape) {
  const double elements = static_cast<double>(shape.length + kLanes) *
                          static_cast<double>(shape.kv_heads) *
                          static_cast<double>(shape.head_dim + kLanes);
  if (elements * 8.0 > kMaxBytes) return nullptr;
  std::unique_ptr<AttentionCache> cache(new (std::nothrow) AttentionCache(shape));
  if (cache == nullptr) return nullptr;
  const size_t element = ElementBytes(shape.type);
  const size_t rows = static_cast<size_t>(shape.kv_heads * cache->blocks_ * kLanes);
  const size_t keys =
      Aligned(static_cast<size_t>(shape.kv_heads * cache->blocks_ * cache->key_block_) * element);
  const size_t values = Aligned(rows * static_cast<size_t>(cache->padded_dim_) * element);
  const size_t scales = shape.type == CacheType::kInt8 ? Aligned(rows * sizeof(float)) : 0;
  cache->bytes_ = keys + values + 2 * scales;
  // calloc takes large pieces from the system, which provides zeroed pages on first use.
  cache->memory_ = std::calloc(1, cache->bytes_ + kAlignment);
  if (cache->memory_ == nullptr) return nullptr;
  uint8_t* begin = static_cast<uint8_t*>(cache->memory_);
  begin += Aligned(reinterpret_cast<uintptr_t>(begin)) - reinterpret_cast<uintptr_t>(begin);
  cache->keys_ = begin;
  cache->values_ = begin + keys;
  cache->key_scales_ = reinterpret_cast<float*>(begin + keys + values);
  cache->value_scales_ = reinterpret_cast<float*>(begin + keys + values + scales);
  return cache;
}

}  // namespace tfmot_ternary
