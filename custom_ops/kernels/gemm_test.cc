// Every integer kernel of the table against the portable one: the same int32, bit for bit. With an
// argument: the kernels whose names contain it.
#include "custom_ops/kernels/gemm.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/gemm_problem.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

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
    Random random(kGemmSeed + static_cast<uint64_t>(k));
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
    test->Check(format, std::min<int64_t>(100000, MaxK(format)), group_size, WeightPattern::kRandom,
                ActivationPattern::kRandom, {{{kTileRows}, {1, 2, 17}}});
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
        test->Check(format, std::min<int64_t>(99999, MaxK(format) - 1), group_size, weights,
                    activations, {{{kTileRows}, {1, 5}}});
      }
    }
  }
  // The longest row that the ops take.
  for (WeightPattern weights : {WeightPattern::kPlus, WeightPattern::kMinus}) {
    for (ActivationPattern activations : {ActivationPattern::kHigh, ActivationPattern::kLowest}) {
      test->Check(format, MaxK(format), 0, weights, activations, {{{4}, {1, 2}}});
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
