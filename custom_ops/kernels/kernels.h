// The choice of kernels for one format on one CPU.
#ifndef TFMOT_TERNARY_KERNELS_KERNELS_H_
#define TFMOT_TERNARY_KERNELS_KERNELS_H_

#include <cstdint>

#include "custom_ops/kernels/cpu.h"
#include "custom_ops/kernels/format.h"

namespace tfmot_ternary {

struct FloatKernel;   // float_kernel.h
struct GemmKernel;    // gemm.h
struct RowKernel;     // row.h
struct UnpackKernel;  // row.h

struct Kernels {
  Format format;
  const GemmKernel* decode;   // for few rows of x
  const GemmKernel* prefill;  // for many (see GemmKernel::min_m); the same as decode where none is
  const RowKernel* row;       // quantization, scales, bias
  const UnpackKernel* unpack;
  const FloatKernel* floats;  // null where there is none
};

// A pure function of its arguments: the first lines of kernels.inc that fit (best first, portable
// last).
Kernels SelectKernels(CpuFlags flags, Format format);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_KERNELS_H_
