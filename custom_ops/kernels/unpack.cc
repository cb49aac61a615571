#include "custom_ops/kernels/unpack.h"

#include <algorithm>

#include "custom_ops/kernels/float_kernel.h"
#include "custom_ops/kernels/product.h"
#include "custom_ops/kernels/row.h"

namespace tfmot_ternary {
namespace {

// Weights from which a task is worth a thread's attention.
constexpr int64_t kWeightsPerTask = 32768;

// Weights unpacked at once, in a buffer on the stack: a whole number of blocks of every format
// (256, 320 and 512) and of groups.
constexpr int64_t kPieceWeights = 2560;

void WriteRow(const PackedWeights& weights, const Kernels& kernels, int64_t i, float* out) {
  const RowFunctions& row = *kernels.row->functions;
  const uint8_t* packed = weights.data + i * RowBytes(weights.format, weights.k);
  const bool grouped = weights.layout == ScaleLayout::kGroup;
  const float* scales =
      weights.scales + (weights.layout == ScaleLayout::kTensor ? 0 : i * GroupCount(weights));
  if (kernels.floats != nullptr) {
    kernels.floats->functions->dequantize(packed, weights.k, scales,
                                          grouped ? weights.group_size : 0, out);
    return;
  }
  const int64_t step = grouped ? weights.group_size : kPieceWeights;
  alignas(64) int8_t codes[kPieceWeights];
  for (int64_t begin = 0; begin < weights.k; begin += kPieceWeights) {
    const int64_t count = std::min(kPieceWeights, weights.k - begin);
    kernels.unpack->unpack(packed + RowBytes(weights.format, begin), count, codes);
    for (int64_t j = 0; j < count; j += step) {
      const float scale = scales[grouped ? (begin + j) / weights.group_size : 0];
      row.scale(codes + j, std::min(step, count - j), scale, out + begin + j);
    }
  }
}

struct RowsJob {
  const PackedWeights& weights;
  const Kernels& kernels;
  const int32_t* ids;  // null: row i is row i
  int64_t count;
  int64_t per_task;
  float* out;
};

void WriteRows(void* arg, int64_t task, int /*worker*/) {
  const RowsJob& job = *static_cast<const RowsJob*>(arg);
  const int64_t end = std::min(job.count, (task + 1) * job.per_task);
  for (int64_t i = task * job.per_task; i < end; ++i) {
    WriteRow(job.weights, job.kernels, job.ids == nullptr ? i : job.ids[i],
             job.out + i * job.weights.k);
  }
}

void WriteAllRows(const PackedWeights& weights, const int32_t* ids, int64_t count,
                  const Kernels& kernels, ThreadPool* pool, float* out) {
  const int64_t per_task = std::max<int64_t>(1, kWeightsPerTask / weights.k);
  RowsJob job = {weights, kernels, ids, count, per_task, out};
  RunTasks(pool, (count + per_task - 1) / per_task, WriteRows, &job);
}

}  // namespace

void Unpack(const PackedWeights& weights, const Kernels& kernels, ThreadPool* pool, float* out) {
  WriteAllRows(weights, nullptr, weights.n, kernels, pool, out);
}

int64_t EmbeddingLookup(const PackedWeights& weights, const int32_t* ids, int64_t count,
                        const Kernels& kernels, ThreadPool* pool, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= weights.n) return i;
  }
  WriteAllRows(weights, ids, count, kernels, pool, out);
  return -1;
}

}  // namespace tfmot_ternary
