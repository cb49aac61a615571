// For tests: every set of FusedFunctions that this CPU runs, and comparisons of rows.
#ifndef TFMOT_TERNARY_KERNELS_FUSED_TEST_H_
#define TFMOT_TERNARY_KERNELS_FUSED_TEST_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/fused.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {

// Calls check(functions, name) -> comparisons for every set of functions, best first.
template <class Check>
void ForEachFused(Check check) {
  int count = 0;
  const FusedKernel* kernels = FusedKernels(&count);
  for (int i = 0; i < count; ++i) {
    const FusedKernel& kernel = kernels[i];
    const int64_t comparisons =
        Supported(kernel.cpu) ? check(*kernel.functions, std::string(kernel.name)) : 0;
    RecordKernel(kernel.name, kernel.cpu, comparisons);
  }
}

inline const FusedFunctions& PortableFusedFunctions() { return *SelectFused(kCpuPortable); }

// Same bits; a NaN of any kind equals a NaN.
inline bool SameBits(const Aligned<float>& a, const Aligned<float>& b) {
  for (int64_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) {
      return false;
    }
  }
  return a.size() == b.size();
}

// Values in [-range, range), some rows with a large mean or a heavy tail.
inline void FillFloats(Random* random, float range, float mean, Aligned<float>* out) {
  for (int64_t i = 0; i < out->size(); ++i) {
    const float x = random->Float();
    (*out)[i] = mean + range * (random->Integer(0, 15) == 0 ? 8.0f * x : x);
  }
}

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_FUSED_TEST_H_
