#include "custom_ops/kernels/fully_connected.h"

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/float32_product.h"
#include "custom_ops/kernels/product.h"
#include "custom_ops/kernels/row.h"

namespace tfmot_ternary {
namespace {

// Values of x from which their quantization is worth waking the other threads (about 5 us of work).
constexpr int64_t kParallelQuantization = 65536;

struct Pieces {
  QuantizedRows rows;
  ProductScratch scratch;
};

Pieces TakePieces(const PackedWeights& weights, int64_t m, Activations activations, int num_threads,
                  Workspace* workspace) {
  Pieces pieces = {};
  if (activations == Activations::kInt8) {
    pieces.rows = TakeQuantizedRows(weights, std::min(m, kSlabRows), workspace);
    pieces.scratch = TakeInt8Scratch(weights, num_threads, workspace);
  } else {
    pieces.scratch = TakeFloat32Scratch(weights, num_threads, workspace);
  }
  return pieces;
}

struct QuantizationJob {
  const PackedWeights& weights;
  const float* x;
  const RowKernel& row;
  const QuantizedRows& rows;
  bool reads_sums;
};

void QuantizeRow(void* arg, int64_t i, int /*worker*/) {
  const QuantizationJob& job = *static_cast<const QuantizationJob*>(arg);
  const int64_t k = job.weights.k;
  const int64_t stride = ActivationStride(k);
  const RowFunctions& row = *job.row.functions;
  const float* x = job.x + i * k;
  int8_t* q = job.rows.q + i * stride;
  float inverse;
  if (RowScale(job.row, x, k, &job.rows.scale_x[i], &inverse)) {
    row.quantize(x, k, inverse, q);
    std::memset(q + k, 0, stride - k);
  } else {
    std::memset(q, 0, stride);
  }
  if (!job.reads_sums) return;
  row.sum_groups(q, k, GroupSizeOf(job.weights), job.rows.sums + i * GroupCount(job.weights));
}

}  // namespace

bool ParseActivations(const char* token, Activations* out) {
  if (token == nullptr) return false;
  if (std::strcmp(token, "int8") == 0) {
    *out = Activations::kInt8;
  } else if (std::strcmp(token, "float32") == 0) {
    *out = Activations::kFloat32;
  } else {
    return false;
  }
  return true;
}

size_t FullyConnectedWorkspaceBytes(const PackedWeights& weights, int64_t m,
                                    Activations activations, int num_threads) {
  Workspace measure(nullptr);
  TakePieces(weights, m, activations, num_threads, &measure);
  return measure.used();
}

void FullyConnected(const PackedWeights& weights, const float* x, int64_t m,
                    const Epilogue& epilogue, Activations activations, const Kernels& kernels,
                    void* workspace, ThreadPool* pool, float* y) {
  if (m == 0) return;
  Workspace memory(workspace);
  const Pieces pieces = TakePieces(weights, m, activations, ThreadCount(pool), &memory);
  if (activations == Activations::kFloat32) {
    MultiplyFloat32(weights, x, m, epilogue, kernels, pieces.scratch, pool, y);
    return;
  }
  for (int64_t begin = 0; begin < m; begin += kSlabRows) {
    const int64_t rows = std::min(kSlabRows, m - begin);
    QuantizationJob job = {weights, x + begin * weights.k, *kernels.row, pieces.rows,
                           ReadsSums(weights, kernels, rows)};
    RunTasks(rows * weights.k >= kParallelQuantization ? pool : nullptr, rows, QuantizeRow, &job);
    MultiplyInt8(weights, pieces.rows, rows, epilogue, kernels, pieces.scratch, pool,
                 y + begin * weights.n);
  }
}

}  // namespace tfmot_ternary
