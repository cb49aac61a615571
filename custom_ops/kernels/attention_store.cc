// Keys and values into the cache, in the cache's order.

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/attention.h"
#include "custom_ops/kernels/product.h"
#include "custom_ops/kernels/workspace.h"

namespace tfmot_ternary {
namespace {

constexpr int64_t kLanes = AttentionCache::kLanes;

// Values from which waking the other threads is worth it.
constexpr int64_t kParallelStore = 32768;

struct StoreJob {
  AttentionCache* cache;
  const float* keys;
  const float* values;
  int64_t steps, position;
  const AttentionKernel& kernel;
  const RowKernel& row;
  uint8_t* converted;  // [workers, converted_stride]
  int64_t converted_stride;
};

// The memory that one thread converts a row in.
static_assert(kMaxHeadDim * 2 + 64 <= kAttentionScratch * sizeof(float), "less than Attend's");
int64_t ConvertedBytes(const CacheShape& shape) { return shape.head_dim * 2 + 64; }

// A row of keys: `count` elements, kLanes apart.
template <typename T>
void Scatter(const T* row, int64_t count, T* block) {
  for (int64_t d = 0; d < count; ++d) block[d * kLanes] = row[d];
}

// int8 codes of a row of head_dim values; returns the scale, NaN where a value is not finite.
float QuantizeRow(const RowKernel& kernel, const float* x, int64_t count, int64_t padded,
                  int8_t* codes) {
  float scale, inverse;
  if (RowScale(kernel, x, count, &scale, &inverse)) {
    kernel.functions->quantize(x, count, inverse, codes);
    std::memset(codes + count, 0, static_cast<size_t>(padded - count));
  } else {
    std::memset(codes, 0, static_cast<size_t>(padded));
  }
  return scale;
}

void StoreRow(const StoreJob& job, int64_t head, int64_t step, uint8_t* converted) {
  const AttentionCache& cache = *job.cache;
  const CacheShape& shape = cache.shape();
  const int64_t dim = shape.head_dim;
  const int64_t position = job.position + step;
  const int64_t lane = position % kLanes;
  const int64_t block = position / kLanes * cache.key_block();
  const float* key = job.keys + (step * shape.kv_heads + head) * dim;
  const float* value = job.values + (step * shape.kv_heads + head) * dim;
  switch (shape.type) {
    case CacheType::kFloat32:
      Scatter(key, dim, cache.Keys<float>(head) + block + lane);
      std::copy_n(value, dim, cache.Values<float>(head) + position * cache.padded_dim());
      return;
    case CacheType::kFloat16: {
      uint16_t* halves = reinterpret_cast<uint16_t*>(converted);
      job.kernel.functions->to_half(key, dim, halves);
      Scatter(halves, dim, cache.Keys<uint16_t>(head) + block + lane);
      job.kernel.functions->to_half(value, dim,
                                    cache.Values<uint16_t>(head) + position * cache.padded_dim());
      return;
    }
    case CacheType::kInt8: {
      int8_t* codes = reinterpret_cast<int8_t*>(converted);
      const int64_t padded = cache.key_block() / kLanes;
      cache.KeyScales(head)[position] = QuantizeRow(job.row, key, dim, padded, codes);
      for (int64_t d = 0; d < padded; ++d) converted[d] = static_cast<uint8_t>(codes[d] + 128);
      uint8_t* keys = cache.Keys<uint8_t>(head) + block + lane * 4;
      for (int64_t d = 0; d < padded; d += 4) std::memcpy(keys + d * kLanes, converted + d, 4);
      cache.ValueScales(head)[position] = QuantizeRow(
          job.row, value, dim, dim, cache.Values<int8_t>(head) + position * cache.padded_dim());
      return;
    }
  }
}

// A block of keys and the values of its positions, head by head: 16 rows are read from places that
// are near each other, and what is written stays in the first level of memory.
void StoreBlock(void* arg, int64_t block, int worker) {
  const StoreJob& job = *static_cast<const StoreJob*>(arg);
  uint8_t* converted = job.converted + worker * job.converted_stride;
  const int64_t first = (job.position / kLanes + block) * kLanes - job.position;
  const int64_t begin = std::max<int64_t>(0, first);
  const int64_t end = std::min(job.steps, first + kLanes);
  for (int64_t head = 0; head < job.cache->shape().kv_heads; ++head) {
    for (int64_t step = begin; step < end; ++step) StoreRow(job, head, step, converted);
  }
}

}  // namespace

void StoreInCache(AttentionCache* cache, const float* keys, const float* values, int64_t steps,
                  int64_t position, const AttentionKernel& kernel, const RowKernel& row,
                  void* workspace, ThreadPool* pool) {
  const CacheShape& shape = cache->shape();
  const int64_t stored = std::min(steps, shape.length - position);
  if (stored <= 0) return;
  StoreJob job = {cache,
                  keys,
                  values,
                  stored,
                  position,
                  kernel,
                  row,
                  static_cast<uint8_t*>(workspace),
                  ConvertedBytes(shape)};
  const bool parallel = stored * shape.kv_heads * shape.head_dim >= kParallelStore;
  const int64_t blocks = (position + stored - 1) / kLanes - position / kLanes + 1;
  RunTasks(parallel ? pool : nullptr, blocks, StoreBlock, &job);
}

}  // namespace tfmot_ternary
