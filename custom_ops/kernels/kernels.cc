#include "custom_ops/kernels/kernels.h"

#include "custom_ops/kernels/float_kernel.h"
#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/row.h"

namespace tfmot_ternary {

#define TFMOT_TERNARY_GEMM(name, format, functions, flags, min_m, min_grouped_m) \
  extern const GemmFunctions functions;
#define TFMOT_TERNARY_UNPACK(name, format, function, flags) \
  void function(const uint8_t* row, int64_t k, int8_t* out);
#define TFMOT_TERNARY_ROW(name, functions, flags) extern const RowFunctions functions;
#define TFMOT_TERNARY_FLOAT(name, format, functions, flags) extern const FloatFunctions functions;
#include "custom_ops/kernels/kernels.inc"

namespace {

constexpr GemmKernel kGemmKernels[] = {
#define TFMOT_TERNARY_GEMM(name, format, functions, flags, min_m, min_grouped_m) \
  {name, Format::format, flags, min_m, min_grouped_m, &functions},
#include "custom_ops/kernels/kernels.inc"
};

constexpr UnpackKernel kUnpackKernels[] = {
#define TFMOT_TERNARY_UNPACK(name, format, function, flags) {name, Format::format, flags, function},
#include "custom_ops/kernels/kernels.inc"
};

constexpr RowKernel kRowKernels[] = {
#define TFMOT_TERNARY_ROW(name, functions, flags) {name, flags, &functions},
#include "custom_ops/kernels/kernels.inc"
};

constexpr FloatKernel kFloatKernels[] = {
#define TFMOT_TERNARY_FLOAT(name, format, functions, flags) \
  {name, Format::format, flags, &functions},
#include "custom_ops/kernels/kernels.inc"
    {nullptr, Format::kT2, 0, nullptr},  // the end: an architecture may have no line
};

inline bool Has(CpuFlags flags, CpuFlags needed) { return (flags & needed) == needed; }

}  // namespace

const GemmKernel* GemmKernels(int* count) {
  *count = sizeof(kGemmKernels) / sizeof(kGemmKernels[0]);
  return kGemmKernels;
}

const UnpackKernel* UnpackKernels(int* count) {
  *count = sizeof(kUnpackKernels) / sizeof(kUnpackKernels[0]);
  return kUnpackKernels;
}

const RowKernel* RowKernels(int* count) {
  *count = sizeof(kRowKernels) / sizeof(kRowKernels[0]);
  return kRowKernels;
}

const FloatKernel* FloatKernels(int* count) {
  *count = sizeof(kFloatKernels) / sizeof(kFloatKernels[0]) - 1;
  return kFloatKernels;
}

Kernels SelectKernels(CpuFlags flags, Format format) {
  Kernels chosen = {format, nullptr, nullptr, nullptr, nullptr, nullptr};
  for (const GemmKernel& kernel : kGemmKernels) {
    if (kernel.format != format || !Has(flags, kernel.cpu)) continue;
    if (kernel.min_m <= 1) {
      if (chosen.decode == nullptr) chosen.decode = &kernel;
    } else if (chosen.prefill == nullptr && chosen.decode == nullptr) {
      // Behind the decode kernel come only slower instruction sets.
      chosen.prefill = &kernel;
    }
  }
  if (chosen.prefill == nullptr) chosen.prefill = chosen.decode;
  for (const UnpackKernel& kernel : kUnpackKernels) {
    if (kernel.format == format && Has(flags, kernel.cpu)) {
      chosen.unpack = &kernel;
      break;
    }
  }
  for (const RowKernel& kernel : kRowKernels) {
    if (Has(flags, kernel.cpu)) {
      chosen.row = &kernel;
      break;
    }
  }
  for (const FloatKernel* kernel = kFloatKernels; kernel->functions != nullptr; ++kernel) {
    if (kernel->format == format && Has(flags, kernel->cpu)) {
      chosen.floats = kernel;
      break;
    }
  }
  return chosen;
}

}  // namespace tfmot_ternary
