// Every integer kernel of the table against the portable one: the same int32, bit for bit. With an
// argument: the kernels whose names contain it.
#include "custom_ops/kernels/gemm.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 20251120;

enum class ActivationPattern { kRandom, kHigh, kLow, kLowest, kAlternating };

const char* Name(WeightPattern pattern) {
  static constexpr const char* kNames[] = {"random", "all +1", "all -1", "all 0"};
  return kNames[static_cast<int>(pattern)];
}

const char* Name(ActivationPattern pattern) {
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
        sums[i * groups + j / group_size] += value;
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
           " activations " + Name(activations) + " seed=" + std::to_string(kSeed);
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
    Random random(kSeed);
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
void CheckPortable(const Problem& problem, int64_t m) {
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

// Numbers of rows of W and of x to go through with one problem.
struct Counts {
  std::vector<int> rows;
  std::vector<int64_t> m;
};

template <typename T>
T Largest(const std::vector<T>& values) {
  return *std::max_element(values.begin(), values.end());
}

class GemmTest {
 public:
  explicit GemmTest(const std::string& part_of_name) : part_of_name_(part_of_name) {
    kernels_ = GemmKernels(&count_);
    runs_.resize(count_);
    CHECK_TRUE(std::any_of(kernels_, kernels_ + count_,
                           [this](const GemmKernel& kernel) { return Chosen(kernel); }),
               "no kernel is called " + part_of_name_);
  }

  // All pairs of each element of `counts`, with all kernels of the format that take rows of k.
  void Check(Format format, int64_t k, int64_t group_size, WeightPattern weights,
             ActivationPattern activations, const std::vector<Counts>& counts) {
    Random random(kSeed + static_cast<uint64_t>(k));
    int rows = 0;
    int64_t m = 0;
    for (const Counts& c : counts) {
      rows = std::max(rows, Largest(c.rows));
      m = std::max(m, Largest(c.m));
    }
    Problem problem(format, rows, k, group_size, weights, activations, m, &random);
    const Kernels portable = SelectKernels(kCpuPortable, format);
    problem.Run(*portable.decode->functions, rows, m, problem.expected.data());
    CheckPortable(problem, m);
    for (int i = 0; i < count_; ++i) {
      const GemmKernel& kernel = kernels_[i];
      if (kernel.format != format || !Chosen(kernel) || !Supported(kernel.cpu)) continue;
      if (kernel.min_m > 1 && k > kLongestTiled) continue;
      for (const Counts& c : counts) {
        for (int row_count : c.rows) {
          for (int64_t rows_of_x : c.m) {
            problem.Compare(kernel, row_count, rows_of_x);
            problem.CompareScaled(kernel, row_count, rows_of_x);
            ++runs_[i];
          }
        }
      }
    }
  }

  // Beyond kMaxTiledK no kernel with min_m > 1 is called; their scratch would be 32 bytes for each
  // weight of a row.
  static constexpr int64_t kLongestTiled = 100000;

  int64_t LargestBlock() const {
    int64_t largest = 0;
    for (int i = 0; i < count_; ++i) largest = std::max(largest, kernels_[i].functions->block_m);
    return largest;
  }

  void Report() const {
    for (int i = 0; i < count_; ++i) {
      if (Chosen(kernels_[i])) RecordKernel(kernels_[i].name, kernels_[i].cpu, runs_[i]);
    }
  }

 private:
  bool Chosen(const GemmKernel& kernel) const {
    return std::strstr(kernel.name, part_of_name_.c_str()) != nullptr;
  }

  const std::string part_of_name_;
  const GemmKernel* kernels_;
  int count_;
  std::vector<int64_t> runs_;
};

constexpr int64_t kGroupSizes[] = {0, 32, 64, 128, 256};  // 0: one group

// Row lengths, groups, rows of W and of x; random values.
void CheckSizes(Format format, GemmTest* test) {
  std::vector<int> all_rows;
  for (int n = 1; n <= 17; ++n) all_rows.push_back(n);
  for (int n : {23, 24, 25, 31, kTileRows}) all_rows.push_back(n);
  // Around the blocks of rows of x inside the kernels, and past the largest block they ask for.
  std::vector<int64_t> all_m = {15, 16, 17, 23, 24, 25, 31, 32, 33, 34, 47, 48, 49, 63, 64, 65};
  for (int64_t m = 1; m <= 13; ++m) all_m.push_back(m);
  all_m.push_back(test->LargestBlock() + 1);
  const std::vector<Counts> many = {{all_rows, {1, 2, 5, 17}}, {{1, 16, 17, kTileRows}, all_m}};
  const std::vector<Counts> few = {{{1, 3, 16, 17, kTileRows}, {1, 2, 3, 5, 13}},
                                   {{16, kTileRows}, {16, 18, 33}}};
  for (int64_t k : RowLengths()) {
    // All counts at a few lengths, the corners at the others.
    const bool all = k == 33 || k == 321 || k == 640;
    for (int64_t group_size : kGroupSizes) {
      test->Check(format, k, group_size, WeightPattern::kRandom, ActivationPattern::kRandom,
                  all ? many : few);
    }
  }
  for (int64_t group_size : kGroupSizes) {
    test->Check(format, 100000, group_size, WeightPattern::kRandom, ActivationPattern::kRandom,
                {{{kTileRows}, {1, 2, 17}}});
  }
}

// The values that fill the sums of the kernels most.
void CheckExtremes(Format format, GemmTest* test) {
  for (WeightPattern weights : {WeightPattern::kRandom, WeightPattern::kPlus, WeightPattern::kMinus,
                                WeightPattern::kZero}) {
    for (ActivationPattern activations :
         {ActivationPattern::kHigh, ActivationPattern::kLow, ActivationPattern::kLowest,
          ActivationPattern::kAlternating}) {
      for (int64_t k : {65, 2049}) {
        for (int64_t group_size : kGroupSizes) {
          test->Check(format, k, group_size, weights, activations,
                      {{{5, kTileRows}, {1, 2, 5, 17}}});
        }
      }
      for (int64_t group_size : {0, 128}) {
        test->Check(format, 99999, group_size, weights, activations, {{{kTileRows}, {1, 5}}});
      }
    }
  }
  // The longest row that the ops take.
  for (WeightPattern weights : {WeightPattern::kPlus, WeightPattern::kMinus}) {
    for (ActivationPattern activations : {ActivationPattern::kHigh, ActivationPattern::kLowest}) {
      test->Check(format, kMaxK, 0, weights, activations, {{{4}, {1, 2}}});
    }
  }
}

void Main(const std::string& part_of_name) {
  GemmTest test(part_of_name);
  for (Format format : kFormats) {
    CheckSizes(format, &test);
    CheckExtremes(format, &test);
  }
  test.Report();
}

}  // namespace
}  // namespace tfmot_ternary

int main(int argc, char** argv) {
  tfmot_ternary::Main(argc > 1 ? argv[1] : "");
  return tfmot_ternary::Finish("gemm_test");
}
