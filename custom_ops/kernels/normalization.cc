#include "custom_ops/kernels/normalization.h"

#include <algorithm>

#include "custom_ops/kernels/product.h"

namespace tfmot_ternary {
namespace {

// Values from which a task is worth a thread's attention: some microseconds of work.
constexpr int64_t kValuesPerTask = 16384;

struct NormJob {
  const float* x;
  int64_t rows;
  int64_t width;
  int64_t per_task;
  const float* scale;
  const float* beta;  // null: RmsNorm
  float epsilon;
  const FusedFunctions& functions;
  float* out;
};

void NormRows(void* arg, int64_t task, int /*worker*/) {
  const NormJob& job = *static_cast<const NormJob*>(arg);
  const int64_t end = std::min(job.rows, (task + 1) * job.per_task);
  for (int64_t row = task * job.per_task; row < end; ++row) {
    const float* x = job.x + row * job.width;
    float* out = job.out + row * job.width;
    if (job.beta == nullptr) {
      job.functions.rms_norm(x, job.width, job.scale, job.epsilon, out);
    } else {
      job.functions.layer_norm(x, job.width, job.scale, job.beta, job.epsilon, out);
    }
  }
}

void NormAll(NormJob* job, ThreadPool* pool) {
  if (job->rows == 0 || job->width == 0) return;
  job->per_task = std::max<int64_t>(1, kValuesPerTask / job->width);
  RunTasks(pool, DivideUp(job->rows, job->per_task), NormRows, job);
}

}  // namespace

void RmsNorm(const float* x, int64_t rows, int64_t width, const float* scale, float epsilon,
             const FusedFunctions& functions, ThreadPool* pool, float* out) {
  NormJob job = {x, rows, width, 0, scale, nullptr, epsilon, functions, out};
  NormAll(&job, pool);
}

void LayerNorm(const float* x, int64_t rows, int64_t width, const float* gamma, const float* beta,
               float epsilon, const FusedFunctions& functions, ThreadPool* pool, float* out) {
  NormJob job = {x, rows, width, 0, gamma, beta, epsilon, functions, out};
  NormAll(&job, pool);
}

}  // namespace tfmot_ternary
