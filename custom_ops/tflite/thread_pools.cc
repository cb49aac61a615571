#include "custom_ops/tflite/thread_pools.h"

#include <map>
#include <mutex>
#include <utility>

namespace tfmot_ternary {
namespace {

using PoolKey = std::pair<const void*, int>;

// Never destroyed: an interpreter may outlive the static objects of this library.
struct Pools {
  std::mutex mutex;
  std::map<PoolKey, std::weak_ptr<ThreadPool>> by_key;
};

Pools& AllPools() {
  static Pools* pools = new Pools;
  return *pools;
}

}  // namespace

const void* InterpreterIdentity(TfLiteContext* context) {
  // The subgraphs have a context each, but share the external context in which the builtin kernels
  // keep their own threads.
  const void* shared = context->GetExternalContext != nullptr
                           ? context->GetExternalContext(context, kTfLiteCpuBackendContext)
                           : nullptr;
  return shared != nullptr ? shared : context;
}

std::shared_ptr<ThreadPool> AcquireThreadPool(TfLiteContext* context, int num_threads) {
  if (num_threads <= 1) return nullptr;
  const PoolKey key(InterpreterIdentity(context), num_threads);
  Pools& pools = AllPools();
  std::lock_guard<std::mutex> lock(pools.mutex);
  for (auto it = pools.by_key.begin(); it != pools.by_key.end();) {
    it = it->second.expired() ? pools.by_key.erase(it) : std::next(it);
  }
  std::weak_ptr<ThreadPool>& known = pools.by_key[key];
  std::shared_ptr<ThreadPool> pool = known.lock();
  if (pool == nullptr) {
    pool = std::make_shared<ThreadPool>(num_threads);
    known = pool;
  }
  return pool;
}

}  // namespace tfmot_ternary
