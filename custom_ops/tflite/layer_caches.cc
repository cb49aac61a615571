#include "custom_ops/tflite/layer_caches.h"

#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <tuple>

#include "custom_ops/tflite/thread_pools.h"

namespace tfmot_ternary {
namespace {

// What a cache is for.
enum class Kind { kAttention, kKeyRows, kValueRows };

using CacheKey = std::tuple<const void*, int64_t, Kind>;

template <typename Cache>
using CacheMap = std::map<CacheKey, std::weak_ptr<Cache>>;

// Never destroyed: an interpreter may outlive the static objects of this library.
struct Caches {
  std::mutex mutex;
  CacheMap<AttentionCache> attention;
  CacheMap<RowCache> rows;
};

Caches& AllCaches() {
  static Caches* caches = new Caches;
  return *caches;
}

const CacheShape& ShapeOf(const AttentionCache& cache) { return cache.shape(); }
const CacheShape& ShapeOf(const RowCache& cache) { return cache.shape; }

std::shared_ptr<RowCache> MakeRows(const CacheShape& shape) {
  const double count = static_cast<double>(shape.length) * static_cast<double>(shape.kv_heads) *
                       static_cast<double>(shape.head_dim);
  if (count > static_cast<double>(INT32_MAX)) return nullptr;  // the output could not hold them
  void* rows = std::calloc(static_cast<size_t>(count) + 1, sizeof(float));
  if (rows == nullptr) return nullptr;
  return std::shared_ptr<RowCache>(new RowCache{shape, static_cast<float*>(rows)});
}

template <typename Cache, typename Make>
std::shared_ptr<Cache> Acquire(CacheMap<Cache>* map, const CacheKey& key, const CacheShape& shape,
                               ErrorText* error, Make make) {
  std::lock_guard<std::mutex> lock(AllCaches().mutex);
  for (auto it = map->begin(); it != map->end();) {
    it = it->second.expired() ? map->erase(it) : std::next(it);
  }
  std::weak_ptr<Cache>& known = (*map)[key];
  std::shared_ptr<Cache> cache = known.lock();
  if (cache == nullptr) {
    cache = make(shape);
    known = cache;
    if (cache == nullptr) {
      error->Set("expected memory for a cache of %lld positions, %lld heads of %lld, got none",
                 static_cast<long long>(shape.length), static_cast<long long>(shape.kv_heads),
                 static_cast<long long>(shape.head_dim));
    }
  } else if (!(ShapeOf(*cache) == shape)) {
    const CacheShape& other = ShapeOf(*cache);
    error->Set(
        "expected one shape for the cache of layer %lld, got %lld positions, %lld heads of %lld "
        "here and %lld, %lld of %lld elsewhere (or another cache type); number the layers anew",
        static_cast<long long>(std::get<1>(key)), static_cast<long long>(shape.length),
        static_cast<long long>(shape.kv_heads), static_cast<long long>(shape.head_dim),
        static_cast<long long>(other.length), static_cast<long long>(other.kv_heads),
        static_cast<long long>(other.head_dim));
    return nullptr;
  }
  return cache;
}

}  // namespace

std::shared_ptr<AttentionCache> AcquireAttentionCache(TfLiteContext* context, int64_t layer,
                                                      const CacheShape& shape, ErrorText* error) {
  const CacheKey key(InterpreterIdentity(context), layer, Kind::kAttention);
  return Acquire(&AllCaches().attention, key, shape, error, [](const CacheShape& wanted) {
    return std::shared_ptr<AttentionCache>(AttentionCache::Make(wanted));
  });
}

std::shared_ptr<RowCache> AcquireRowCache(TfLiteContext* context, int64_t layer, CachePart part,
                                          const CacheShape& shape, ErrorText* error) {
  const CacheKey key(InterpreterIdentity(context), layer,
                     part == CachePart::kKey ? Kind::kKeyRows : Kind::kValueRows);
  return Acquire(&AllCaches().rows, key, shape, error, MakeRows);
}

}  // namespace tfmot_ternary
