#include "custom_ops/kernels/activation.h"

#include <algorithm>

#include "custom_ops/kernels/product.h"

namespace tfmot_ternary {
namespace {

// Values from which a task is worth a thread's attention: some microseconds of work.
constexpr int64_t kValuesPerTask = 8192;

struct ActivationJob {
  const float* x;
  int64_t count;
  ActivationKind kind;
  const FusedFunctions& functions;
  float* out;
};

void ActivatePiece(void* arg, int64_t task, int /*worker*/) {
  const ActivationJob& job = *static_cast<const ActivationJob*>(arg);
  const int64_t begin = task * kValuesPerTask;
  const int64_t count = std::min(kValuesPerTask, job.count - begin);
  job.functions.activate(job.x + begin, count, job.kind, job.out + begin);
}

}  // namespace

void ActivateAll(const float* x, int64_t count, ActivationKind kind,
                 const FusedFunctions& functions, ThreadPool* pool, float* out) {
  ActivationJob job = {x, count, kind, functions, out};
  RunTasks(pool, DivideUp(count, kValuesPerTask), ActivatePiece, &job);
}

}  // namespace tfmot_ternary
