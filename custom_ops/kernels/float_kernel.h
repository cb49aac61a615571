// Kernels that turn packed weights into float32 on the way: activations="float32", and rows that
// are looked up.
#ifndef TFMOT_TERNARY_KERNELS_FLOAT_KERNEL_H_
#define TFMOT_TERNARY_KERNELS_FLOAT_KERNEL_H_

#include <cstdint>

#include "custom_ops/kernels/cpu.h"
#include "custom_ops/kernels/format.h"
#include "custom_ops/kernels/gemm.h"

namespace tfmot_ternary {

// Chains of the sum over a group: weight i of a group belongs to chain i % 16, chains grow in
// ascending order, and are added up as a tree (row_body.h: Dot).
constexpr int kFloatChains = 16;

struct FloatFunctions {
  // out = code * scale for a row of k. scales: one for each group of group_size, a power of two
  // from 32 on; group_size 0: one for all.
  void (*dequantize)(const uint8_t* row, int64_t k, const float* scales, int64_t group_size,
                     float* out);
  // sums[i][r] = sum over the groups g of scales[r * scale_stride + g] * (sum of x[i] * w[r]) for
  // i < m, r < row_count. x: [m, tile.k], sums: [m, kTileRows].
  void (*multiply)(const GemmTile& tile, const float* scales, int64_t scale_stride, const float* x,
                   int64_t m, float* sums);
};

struct FloatKernel {
  const char* name;
  Format format;
  CpuFlags cpu;
  const FloatFunctions* functions;
};

// The lines of kernels.inc, best first for each format.
const FloatKernel* FloatKernels(int* count);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_FLOAT_KERNEL_H_
