// Rotary embedding: every instruction set gives the portable bits, which are near float64.
#include "custom_ops/kernels/rotary.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/fused_test.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 43;
constexpr PairLayout kLayouts[] = {PairLayout::kHalves, PairLayout::kPairs};

Aligned<float> InverseFrequencies(int64_t pairs) {
  Aligned<float> table(pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    table[i] = static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / pairs));
  }
  return table;
}

// Cosines and sines are those of the float32 angle, but for the rounding to float32.
void CheckWaves() {
  const int64_t pairs = 67;
  const Aligned<float> table = InverseFrequencies(pairs);
  Aligned<float> cosines(pairs), sines(pairs);
  double worst = 0;
  for (float position :
       {0.0f, 1.0f, 2.0f, 3.0f, 5.0f, 777.0f, 4095.0f, 131071.0f, 1048575.0f, -3.0f, -50000.0f}) {
    PortableFusedFunctions().waves(table.data(), pairs, position, 1.0f, cosines.data(),
                                   sines.data());
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = position * table[i];
      worst = std::max(
          {worst, std::fabs(cosines[i] - std::cos(angle)), std::fabs(sines[i] - std::sin(angle))});
    }
  }
  std::printf("waves: error %.3g\n", worst);
  CHECK_TRUE(worst < 3.1e-8, std::to_string(worst));  // half a unit in the last place near 1
}

int64_t CheckAgainstPortable(const FusedFunctions& functions, const std::string& name) {
  const FusedFunctions& portable = PortableFusedFunctions();
  Random random(kSeed);
  int64_t comparisons = 0;
  for (int64_t pairs : {1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 128, 256}) {
    const std::string context = name + " pairs=" + std::to_string(pairs) + " seed 43";
    const Aligned<float> table = InverseFrequencies(pairs);
    Aligned<float> c(pairs), s(pairs), got_c(pairs), got_s(pairs), x(2 * pairs), out(2 * pairs),
        got(2 * pairs);
    const float position = static_cast<float>(random.Integer(-5, 100000));
    portable.waves(table.data(), pairs, position, 1.25f, c.data(), s.data());
    functions.waves(table.data(), pairs, position, 1.25f, got_c.data(), got_s.data());
    CHECK_TRUE(SameBits(c, got_c) && SameBits(s, got_s), "waves " + context);
    FillFloats(&random, 2.0f, 0.0f, &x);
    for (PairLayout in : kLayouts) {
      for (PairLayout to : kLayouts) {
        const int64_t second = in == PairLayout::kPairs ? 1 : pairs;
        const int64_t out_second = to == PairLayout::kPairs ? 1 : pairs;
        portable.rotate(x.data(), x.data() + second, pairs, in, c.data(), s.data(), to, out.data(),
                        out.data() + out_second);
        functions.rotate(x.data(), x.data() + second, pairs, in, c.data(), s.data(), to, got.data(),
                         got.data() + out_second);
        CHECK_TRUE(SameBits(out, got), "rotate " + context);
        ++comparisons;
      }
    }
  }
  return comparisons;
}

// The definition, in float64 but for the float32 angle.
void CheckProblem(RotaryProblem problem, ThreadPool* pool, Random* random) {
  const int64_t size = problem.batch * problem.length * problem.heads * problem.width;
  Aligned<float> x(size), out(size);
  FillFloats(random, 2.0f, 0.0f, &x);
  const FusedFunctions& functions = *SelectFused(TestCpu());
  Rotary(problem, x.data(), functions, pool, out.data());
  const int64_t pairs = problem.pairs;
  bool near = true;
  for (int64_t i = 0; i < size; i += problem.width) {
    const int64_t t = i / problem.width / problem.heads % problem.length;
    const int32_t position =
        problem.position_per_row ? problem.positions[t] : problem.positions[0] + t;
    for (int64_t j = 0; j < pairs; ++j) {
      const float angle = static_cast<float>(position) * problem.inverse_frequencies[j];
      const bool side = problem.input_layout == PairLayout::kPairs;
      const bool out_side = problem.output_layout == PairLayout::kPairs;
      const double a = x[i + (side ? 2 * j : j)];
      const double b = x[i + (side ? 2 * j + 1 : pairs + j)];
      const double c = problem.amplitude * std::cos(static_cast<double>(angle));
      const double s = problem.amplitude * std::sin(static_cast<double>(angle));
      const double bound = 2e-7 * problem.amplitude * (std::fabs(a) + std::fabs(b));
      near &= std::fabs(out[i + (out_side ? 2 * j : j)] - (a * c - b * s)) <= bound;
      near &= std::fabs(out[i + (out_side ? 2 * j + 1 : pairs + j)] - (b * c + a * s)) <= bound;
    }
    for (int64_t j = 2 * pairs; j < problem.width; ++j) near &= out[i + j] == x[i + j];
  }
  CHECK_TRUE(near, std::to_string(pairs) + " pairs of width " + std::to_string(problem.width) +
                       ", length " + std::to_string(problem.length) + ", seed 43");
}

void CheckProblems(ThreadPool* pool) {
  Random random(kSeed);
  const int32_t first[] = {1000};
  std::vector<int32_t> each;
  for (int i = 0; i < 300; ++i) each.push_back(static_cast<int32_t>(random.Integer(0, 5000)));
  for (PairLayout in : kLayouts) {
    for (PairLayout to : kLayouts) {
      // 300 pairs do not fit the piece on the stack; 0 pairs copy.
      for (int64_t pairs : {0, 5, 16, 300}) {
        const Aligned<float> table = InverseFrequencies(pairs);
        for (int64_t rest : {0, 3}) {
          const int64_t width = 2 * pairs + rest;
          for (int64_t length : {1, 2, 300}) {
            for (bool per_row : {false, true}) {
              CheckProblem({2, length, 3, width, pairs, table.data(), per_row ? each.data() : first,
                            per_row, 1.5f, in, to},
                           length > 1 ? pool : nullptr, &random);
            }
          }
        }
      }
    }
  }
}

void CheckTokens() {
  PairLayout layout = PairLayout::kHalves;
  CHECK_TRUE(ParsePairLayout("pairs", &layout) && layout == PairLayout::kPairs, "pairs");
  CHECK_TRUE(!ParsePairLayout("half", &layout) && !ParsePairLayout(nullptr, &layout), "half");
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::CheckWaves();
  tfmot_ternary::ForEachFused(tfmot_ternary::CheckAgainstPortable);
  tfmot_ternary::ThreadPool pool(3);
  tfmot_ternary::CheckProblems(&pool);
  tfmot_ternary::CheckTokens();
  return tfmot_ternary::Finish("rotary_test");
}
