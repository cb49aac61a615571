// What is done to single rows: unpacking, quantization, scales and bias. One body (row_body.h),
// compiled for each instruction set; every compilation gives the same bits.
#ifndef TFMOT_TERNARY_KERNELS_ROW_H_
#define TFMOT_TERNARY_KERNELS_ROW_H_

#include <cstdint>

#include "custom_ops/kernels/cpu.h"
#include "custom_ops/kernels/epilogue.h"
#include "custom_ops/kernels/format.h"

namespace tfmot_ternary {

// Windows of an image, in bytes.
struct Patches {
  const uint8_t* first;
  int64_t step;
  int64_t runs, run_step, run_bytes;
};

struct RowFunctions {
  // Largest |x| as its float32 bits; above 0x7f7fffff where a value is not finite.
  uint32_t (*largest_bits)(const float* x, int64_t count);
  // q = clamp(round half to even(x * inverse), -127, 127).
  void (*quantize)(const float* x, int64_t count, float inverse, int8_t* q);
  // sums[g] = sum of q over group g of row of k.
  void (*sum_groups)(const int8_t* q, int64_t k, int64_t group_size, int32_t* sums);

  // One group: y = activation(float(acc) * (scale_x * scale) + bias) for `count` rows of W.
  // scales: [count], or [1] where one_scale.
  void (*finish)(const int32_t* acc, int count, float scale_x, const float* scales, bool one_scale,
                 const float* bias, Activation activation, float* y);
  // out[g][r] = scales[min(r, rows - 1)][g] for r < kTileRows; scales: [rows, groups], 1 <= rows.
  void (*transpose)(const float* scales, int rows, int64_t groups, float* out);
  // Several groups: sums[r] += float(acc[g][r]) * scales[g][r] for g ascending, r < kTileRows.
  void (*add_groups)(const int32_t* acc, const float* scales, int64_t groups, float* sums);
  // y = activation(sums * scale_x + bias).
  void (*finish_groups)(const float* sums, int count, float scale_x, const float* bias,
                        Activation activation, float* y);

  // Copies `count` patches, which begin every patches.step bytes, to every to_step bytes; a patch
  // is patches.runs pieces of patches.run_bytes bytes, patches.run_step bytes apart.
  void (*copy_patches)(const Patches& patches, int64_t count, int64_t to_step, uint8_t* to);

  // Sum of x * w over one group, in float32.
  float (*dot)(const float* x, const int8_t* w, int64_t count);
  // out = w * scale.
  void (*scale)(const int8_t* w, int64_t count, float scale, float* out);
};

struct RowKernel {
  const char* name;
  CpuFlags cpu;
  const RowFunctions* functions;
};

using UnpackFunction = void (*)(const uint8_t* row, int64_t k, int8_t* out);

struct UnpackKernel {
  const char* name;
  Format format;
  CpuFlags cpu;
  UnpackFunction unpack;
};

// The lines of kernels.inc, best first for each format.
const RowKernel* RowKernels(int* count);
const UnpackKernel* UnpackKernels(int* count);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ROW_H_
