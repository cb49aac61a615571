// A tile of packed weights and rows of q with the portable kernel's answer, and how a kernel of the
// table is compared with it.
#ifndef TFMOT_TERNARY_KERNELS_GEMM_PROBLEM_H_
#define TFMOT_TERNARY_KERNELS_GEMM_PROBLEM_H_

#include <cstring>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/row.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {

constexpr uint64_t kGemmSeed = 20251120;

enum class ActivationPattern { kRandom, kHigh, kLow, kLowest, kAlternating };

inline const char* Name(WeightPattern pattern) {
  static constexpr const char* kNames[] = {"random", "all high", "all low", "all 0"};
  return kNames[static_cast<int>(pattern)];
}

inline const char* Name(ActivationPattern pattern) {
  static constexpr const char* kNames[] = {"random", "all 127", "all -127", "all -128",
                                           "127, -128 in turn"};
  return kNames[static_cast<int>(pattern)];
}

// Up to kTileRows rows of W and m rows of x with the portable kernel's answer.
struct Problem {
  Format format;
  int rows;
  int64_t k, group_size, groups;
  WeightPattern weights;
  ActivationPattern activations;
  Aligned<uint8_t> packed;
  Aligned<int8_t> q;
  Aligned<int32_t> sums;
  Aligned<int32_t> expected;

  Problem(Format format_in, int rows_in, int64_t k_in, int64_t group_size_in,
          WeightPattern weights_in, ActivationPattern activations_in, int64_t m, Random* random)
      : format(format_in),
        rows(rows_in),
        k(k_in),
        group_size(group_size_in == 0 ? k_in : group_size_in),
        groups((k + group_size - 1) / group_size),
        weights(weights_in),
        activations(activations_in),
        packed(rows * RowBytes(format, k)),
        q(m * ActivationStride(k)),
        sums(m * groups),
        expected(m * groups * kTileRows) {
    for (int r = 0; r < rows; ++r) {
      PackRow(format, MakeCodes(format, k, weights, random), &packed[r * RowBytes(format, k)]);
    }
    std::memset(q.data(), 0, q.size());
    std::memset(sums.data(), 0, sums.size() * sizeof(int32_t));
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        const int value = Value(j, random);
        q[i * ActivationStride(k) + j] = static_cast<int8_t>(value);
        sums[i * groups + j / group_size] += DigitOffset(format) * value;
      }
    }
  }

  int Value(int64_t j, Random* random) const {
    switch (activations) {
      case ActivationPattern::kRandom:
        return static_cast<int>(random->Integer(-128, 127));
      case ActivationPattern::kHigh:
        return 127;
      case ActivationPattern::kLow:
        return -127;
      case ActivationPattern::kLowest:  // quantization never makes it, the kernels bear it
        return -128;
      case ActivationPattern::kAlternating:
        return j % 2 == 0 ? 127 : -128;
    }
    return 0;
  }

  std::string Describe() const {
    return std::string(FormatToken(format)) + " k=" + std::to_string(k) +
           " group_size=" + std::to_string(group_size) + " weights " + Name(weights) +
           " activations " + Name(activations) + " seed=" + std::to_string(kGemmSeed);
  }

  const int32_t* SumsFor(const GemmFunctions& gemm) const {
    return gemm.reads_sums ? sums.data() : nullptr;
  }

  // Rows of W and of x in buffers of their own size, so that the sanitizers see one more being
  // read.
  void Run(const GemmFunctions& gemm, int row_count, int64_t m, int32_t* acc) const {
    Aligned<uint8_t> scratch(static_cast<int64_t>(gemm.scratch_bytes(k)));
    Aligned<uint8_t> w(row_count * RowBytes(format, k));
    std::memcpy(w.data(), packed.data(), w.size());
    Aligned<int8_t> x(m * ActivationStride(k));
    std::memcpy(x.data(), q.data(), x.size());
    const GemmTile tile = {format, w.data(), RowBytes(format, k), row_count,
                           k,      groups,   group_size,          scratch.data()};
    const GemmInput input = {x.data(), ActivationStride(k), SumsFor(gemm), m};
    if (gemm.load != nullptr) gemm.load(tile);
    if (!gemm.group_ranges || groups < 3) {
      gemm.multiply(tile, input, 0, groups, acc);
      return;
    }
    // Two ranges, put together.
    const int64_t cut = groups / 2;
    for (int part = 0; part < 2; ++part) {
      const int64_t begin = part == 0 ? 0 : cut;
      const int64_t end = part == 0 ? cut : groups;
      Aligned<int32_t> piece(m * (end - begin) * kTileRows);
      gemm.multiply(tile, input, begin, end, piece.data());
      for (int64_t i = 0; i < m; ++i) {
        std::memcpy(acc + (i * groups + begin) * kTileRows, &piece[i * (end - begin) * kTileRows],
                    (end - begin) * kTileRows * sizeof(int32_t));
      }
    }
  }

  void Compare(const GemmKernel& kernel, int row_count, int64_t m) const {
    Aligned<int32_t> acc(m * groups * kTileRows);
    Run(*kernel.functions, row_count, m, acc.data());
    for (int64_t i = 0; i < m * groups; ++i) {
      for (int r = 0; r < row_count; ++r) {
        const int32_t got = acc[i * kTileRows + r];
        const int32_t want = expected[i * kTileRows + r];
        if (got == want) continue;
        CHECK_EQUAL(got, want,
                    std::string(kernel.name) + ": " + Describe() +
                        " row_count=" + std::to_string(row_count) + " m=" + std::to_string(m) +
                        " at x row " + std::to_string(i / groups) + ", group " +
                        std::to_string(i % groups) + ", W row " + std::to_string(r));
        return;
      }
    }
  }

  // multiply_scaled against its definition, on float32 bits.
  void CompareScaled(const GemmKernel& kernel, int row_count, int64_t m) const {
    const GemmFunctions& gemm = *kernel.functions;
    if (gemm.multiply_scaled == nullptr || m > gemm.block_m) return;
    Random random(kGemmSeed);
    Aligned<float> scales(groups * kTileRows), got(m * kTileRows), want(m * kTileRows);
    for (int64_t j = 0; j < scales.size(); ++j) scales[j] = random.Float();
    for (int64_t j = 0; j < got.size(); ++j) got[j] = want[j] = random.Float();
    for (int64_t i = 0; i < m * groups; ++i) {
      for (int r = 0; r < row_count; ++r) {
        float* sum = &want[i / groups * kTileRows + r];
        const float product =
            static_cast<float>(expected[i * kTileRows + r]) * scales[i % groups * kTileRows + r];
        *sum = *sum + product;
      }
    }
    Aligned<uint8_t> scratch(static_cast<int64_t>(gemm.scratch_bytes(k)));
    const GemmTile tile = {format, packed.data(), RowBytes(format, k), row_count,
                           k,      groups,        group_size,          scratch.data()};
    const GemmInput input = {q.data(), ActivationStride(k), SumsFor(gemm), m};
    if (gemm.load != nullptr) gemm.load(tile);
    gemm.multiply_scaled(tile, input, scales.data(), got.data());
    for (int64_t i = 0; i < m; ++i) {
      CHECK_TRUE(std::memcmp(&got[i * kTileRows], &want[i * kTileRows],
                             static_cast<size_t>(row_count) * sizeof(float)) == 0,
                 std::string(kernel.name) + ", scaled: " + Describe() +
                     " row_count=" + std::to_string(row_count) + " m=" + std::to_string(m) +
                     " at x row " + std::to_string(i));
    }
  }
};

// The portable kernel itself against the definition of the product.
inline void CheckPortable(const Problem& problem, int64_t m) {
  std::vector<int8_t> codes(problem.k);
  for (int r = 0; r < problem.rows; r += 7) {
    UnpackRow(problem.format, &problem.packed[r * RowBytes(problem.format, problem.k)], problem.k,
              codes.data());
    for (int64_t i = 0; i < m; ++i) {
      std::vector<int64_t> sums(problem.groups);
      for (int64_t j = 0; j < problem.k; ++j) {
        sums[j / problem.group_size] +=
            int64_t{codes[j]} * problem.q[i * ActivationStride(problem.k) + j];
      }
      for (int64_t g = 0; g < problem.groups; ++g) {
        CHECK_EQUAL(problem.expected[(i * problem.groups + g) * kTileRows + r], sums[g],
                    "portable: " + problem.Describe());
      }
    }
  }
}

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_GEMM_PROBLEM_H_
