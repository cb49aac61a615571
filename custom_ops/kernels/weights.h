// A packed weight matrix as the kernels see it: a view, owning nothing.
#ifndef TFMOT_TERNARY_KERNELS_WEIGHTS_H_
#define TFMOT_TERNARY_KERNELS_WEIGHTS_H_

#include <cstdint>

#include "custom_ops/kernels/format.h"

namespace tfmot_ternary {

// Shape of `scales`: kTensor [1], kChannel [n], kGroup [n, ceil(k / group_size)].
enum class ScaleLayout : uint8_t { kTensor, kChannel, kGroup };

struct PackedWeights {
  Format format;
  int64_t n;            // rows, >= 1
  int64_t k;            // weights per row, 1 <= k <= MaxK(format)
  const uint8_t* data;  // [n, RowBytes(format, k)]
  const float* scales;  // finite, >= 0
  ScaleLayout layout;
  int64_t group_size;  // 32, 64, 128 or 256 with kGroup; ignored otherwise
};

// Groups per row: 1 unless the layout is kGroup.
inline int64_t GroupCount(const PackedWeights& weights) {
  if (weights.layout != ScaleLayout::kGroup) return 1;
  return (weights.k + weights.group_size - 1) / weights.group_size;
}

// Weights that share a scale.
inline int64_t GroupSizeOf(const PackedWeights& weights) {
  return weights.layout == ScaleLayout::kGroup ? weights.group_size : weights.k;
}

inline bool IsValidGroupSize(int64_t group_size) {
  return group_size == 32 || group_size == 64 || group_size == 128 || group_size == 256;
}

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_WEIGHTS_H_
