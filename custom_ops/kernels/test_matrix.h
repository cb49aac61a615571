// A packed matrix with its codes and scales, for the tests of whole operators.
#ifndef TFMOT_TERNARY_KERNELS_TEST_MATRIX_H_
#define TFMOT_TERNARY_KERNELS_TEST_MATRIX_H_

#include <cmath>
#include <string>
#include <vector>

#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"
#include "custom_ops/kernels/weights.h"

namespace tfmot_ternary {

struct TestMatrix {
  std::vector<std::vector<int8_t>> codes;
  Aligned<uint8_t> packed;
  Aligned<float> scales;
  PackedWeights weights;

  // group_size: -1 per tensor, 0 per channel, otherwise per group.
  TestMatrix(Format format, int64_t n, int64_t k, int64_t group_size, Random* random)
      : packed(n * RowBytes(format, k)),
        scales(group_size < 0    ? 1
               : group_size == 0 ? n
                                 : n * ((k + group_size - 1) / group_size)) {
    for (int64_t r = 0; r < n; ++r) {
      codes.push_back(MakeCodes(format, k, WeightPattern::kRandom, random));
      PackRow(format, codes.back(), packed.data() + r * RowBytes(format, k));
    }
    for (int64_t i = 0; i < scales.size(); ++i) scales[i] = std::fabs(random->Float());
    const ScaleLayout layout = group_size < 0    ? ScaleLayout::kTensor
                               : group_size == 0 ? ScaleLayout::kChannel
                                                 : ScaleLayout::kGroup;
    weights = {format, n, k, packed.data(), scales.data(), layout, group_size};
  }

  float Scale(int64_t row, int64_t column) const {
    switch (weights.layout) {
      case ScaleLayout::kTensor:
        return scales[0];
      case ScaleLayout::kChannel:
        return scales[row];
      case ScaleLayout::kGroup:
        return scales[row * GroupCount(weights) + column / weights.group_size];
    }
    return 0.0f;
  }

  // The weight in float64, exact.
  double Weight(int64_t row, int64_t column) const {
    return static_cast<double>(codes[row][column]) * Scale(row, column);
  }

  std::string Describe(uint64_t seed) const {
    return std::string(FormatToken(weights.format)) + " n=" + std::to_string(weights.n) +
           " k=" + std::to_string(weights.k) + " layout " +
           std::to_string(static_cast<int>(weights.layout)) +
           " group_size=" + std::to_string(weights.group_size) + " seed=" + std::to_string(seed);
  }
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_TEST_MATRIX_H_
