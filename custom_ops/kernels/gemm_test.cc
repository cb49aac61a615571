// Every integer kernel of the table against the portable one: the same int32, bit for bit.
#include "custom_ops/kernels/gemm.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 20251120;
constexpr int64_t kMaxM = 33;

enum class ActivationPattern { kRandom, kHigh, kLow, kLowest, kAlternating };

const char* Name(WeightPattern pattern) {
  static constexpr const char* kNames[] = {"random", "all +1", "all -1", "all 0"};
  return kNames[static_cast<int>(pattern)];
}

// A tile of kTileRows rows and kMaxM rows of x with the portable kernel's answer.
struct Problem {
  Format format;
  int64_t k, group_size, groups;
  WeightPattern weights;
  ActivationPattern activations;
  Aligned<uint8_t> packed;
  Aligned<int8_t> q;
  Aligned<int32_t> sums;
  Aligned<int32_t> expected;

  Problem(Format format_in, int64_t k_in, int64_t group_size_in, WeightPattern weights_in,
          ActivationPattern activations_in, int64_t m, Random* random)
      : format(format_in),
        k(k_in),
        group_size(group_size_in == 0 ? k_in : group_size_in),
        groups((k + group_size - 1) / group_size),
        weights(weights_in),
        activations(activations_in),
        packed(kTileRows * RowBytes(format, k)),
        q(m * ActivationStride(k)),
        sums(m * groups),
        expected(m * groups * kTileRows) {
    for (int r = 0; r < kTileRows; ++r) {
      PackRow(format, MakeCodes(format, k, weights, random), &packed[r * RowBytes(format, k)]);
    }
    std::memset(q.data(), 0, q.size());
    std::memset(sums.data(), 0, sums.size() * sizeof(int32_t));
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        const int value = Value(j, random);
        q[i * ActivationStride(k) + j] = static_cast<int8_t>(value);
        sums[i * groups + j / group_size] += value;
      }
    }
  }

  int Value(int64_t j, Random* random) const {
    switch (activations) {
      case ActivationPattern::kRandom:
        return static_cast<int>(random->Integer(-127, 127));
      case ActivationPattern::kHigh:
        return 127;
      case ActivationPattern::kLow:
        return -127;
      case ActivationPattern::kLowest:  // quantization never makes it, the kernels bear it
        return -128;
      case ActivationPattern::kAlternating:
        return j % 2 == 0 ? 127 : -127;
    }
    return 0;
  }

  std::string Describe() const {
    return std::string(FormatToken(format)) + " k=" + std::to_string(k) +
           " group_size=" + std::to_string(group_size) + " weights " + Name(weights) +
           " activations " + std::to_string(static_cast<int>(activations)) +
           " seed=" + std::to_string(kSeed);
  }

  void Run(const GemmFunctions& gemm, int row_count, int64_t m, int32_t* acc) const {
    Aligned<uint8_t> scratch(static_cast<int64_t>(gemm.scratch_bytes(k)));
    const GemmTile tile = {format, packed.data(), RowBytes(format, k), row_count,
                           k,      groups,        group_size,          scratch.data()};
    const GemmInput input = {q.data(), ActivationStride(k), sums.data(), m};
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
    // Only as many rows as the kernel is told of, so that reading another is seen.
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
};

// The portable kernel itself against the definition of the product.
void CheckPortable(const Problem& problem, int64_t m) {
  std::vector<int8_t> codes(problem.k);
  for (int r = 0; r < kTileRows; r += 7) {
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

class GemmTest {
 public:
  GemmTest() {
    kernels_ = GemmKernels(&count_);
    runs_.resize(count_);
  }

  void Check(Format format, int64_t k, int64_t group_size, WeightPattern weights,
             ActivationPattern activations, const std::vector<int>& row_counts,
             const std::vector<int64_t>& ms) {
    Random random(kSeed + static_cast<uint64_t>(k));
    const int64_t m = *std::max_element(ms.begin(), ms.end());
    Problem problem(format, k, group_size, weights, activations, m, &random);
    const Kernels portable = SelectKernels(kCpuPortable, format);
    problem.Run(*portable.decode->functions, kTileRows, m, problem.expected.data());
    CheckPortable(problem, m);
    for (int i = 0; i < count_; ++i) {
      if (kernels_[i].format != format || !Supported(kernels_[i])) continue;
      for (int rows : row_counts) {
        for (int64_t rows_of_x : ms) {
          problem.Compare(kernels_[i], rows, rows_of_x);
          ++runs_[i];
        }
      }
    }
  }

  bool Supported(const GemmKernel& kernel) const { return (host_ & kernel.cpu) == kernel.cpu; }

  // Says which kernels ran; one that the CPU has and that did not is a failure.
  void Report() const {
    for (int i = 0; i < count_; ++i) {
      const bool supported = Supported(kernels_[i]);
      std::printf("%-24s %lld comparisons%s\n", kernels_[i].name, static_cast<long long>(runs_[i]),
                  supported ? "" : " (not on this CPU)");
      CHECK_TRUE(!supported || runs_[i] > 0, std::string(kernels_[i].name) + " did not run");
    }
  }

 private:
  const CpuFlags host_ = HostCpu();
  const GemmKernel* kernels_;
  int count_;
  std::vector<int64_t> runs_;
};

void Main() {
  GemmTest test;
  std::vector<int> all_rows;
  for (int n = 1; n <= 17; ++n) all_rows.push_back(n);
  all_rows.push_back(31);
  all_rows.push_back(kTileRows);
  const std::vector<int64_t> all_m = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, kMaxM};
  const std::vector<int64_t> group_sizes = {0, 32, 64, 128, 256};
  for (Format format : kFormats) {
    for (int64_t k : RowLengths()) {
      for (int64_t group_size : group_sizes) {
        // All counts of rows at a few lengths, the corners at the others.
        const bool full = k == 33 || k == 321 || k == 640;
        test.Check(format, k, group_size, WeightPattern::kRandom, ActivationPattern::kRandom,
                   full ? all_rows : std::vector<int>{1, 3, 16, 17, kTileRows},
                   full ? all_m : std::vector<int64_t>{1, 2, 3, 5, 13});
      }
    }
    for (WeightPattern weights : {WeightPattern::kRandom, WeightPattern::kPlus,
                                  WeightPattern::kMinus, WeightPattern::kZero}) {
      for (ActivationPattern activations :
           {ActivationPattern::kHigh, ActivationPattern::kLow, ActivationPattern::kLowest,
            ActivationPattern::kAlternating}) {
        for (int64_t k : {65, 2049, 100000}) {
          for (int64_t group_size : {0, 64, 256}) {
            test.Check(format, k, group_size, weights, activations, {5, kTileRows}, {1, 2});
          }
        }
      }
    }
    test.Check(format, 100000, 0, WeightPattern::kRandom, ActivationPattern::kRandom, {kTileRows},
               {1, 2});
    test.Check(format, 100000, 32, WeightPattern::kRandom, ActivationPattern::kRandom, {kTileRows},
               {1, 2});
  }
  test.Report();
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::Main();
  return tfmot_ternary::Finish("gemm_test");
}
