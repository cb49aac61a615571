// Norms: every instruction set gives the portable bits, which are near float64.
#include "custom_ops/kernels/normalization.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/fused_test.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 41;
constexpr double kUnit = 1.0 / (1 << 24);  // half the distance of float32 numbers near 1

struct Row {
  explicit Row(int64_t n, float range, float mean, Random* random)
      : x(n), gamma(n), beta(n), out(n) {
    FillFloats(random, range, mean, &x);
    FillFloats(random, 1.0f, 1.0f, &gamma);
    FillFloats(random, 1.0f, 0.0f, &beta);
  }
  Aligned<float> x, gamma, beta, out;
};

// The bounds of normalization.h.
void CheckAgainstFloat64(const Row& row, float epsilon, const std::string& context) {
  const int64_t n = row.x.size();
  double sum = 0, squares = 0, largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += row.x[i];
    squares += static_cast<double>(row.x[i]) * row.x[i];
    largest = std::max(largest, std::fabs(static_cast<double>(row.x[i])));
  }
  const double mean = sum / n;
  double variance = 0;
  for (int64_t i = 0; i < n; ++i) variance += (row.x[i] - mean) * (row.x[i] - mean) / n;

  const FusedFunctions& functions = PortableFusedFunctions();
  functions.rms_norm(row.x.data(), n, row.gamma.data(), epsilon, row.out.data());
  bool near = true;
  const double inverse_rms = 1 / std::sqrt(squares / n + epsilon);
  for (int64_t i = 0; i < n; ++i) {
    const double expected = row.x[i] * inverse_rms * row.gamma[i];
    near &= std::fabs(row.out[i] - expected) <= (n / 64 + 8) * kUnit * std::fabs(expected);
  }
  CHECK_TRUE(near, "rms_norm " + context);

  functions.layer_norm(row.x.data(), n, row.gamma.data(), row.beta.data(), epsilon, row.out.data());
  near = true;
  const double inverse = 1 / std::sqrt(variance + epsilon);
  for (int64_t i = 0; i < n; ++i) {
    const double quotient = (row.x[i] - mean) * inverse;
    const double expected = quotient * row.gamma[i] + row.beta[i];
    const double bound = (n / 16 + 16) * kUnit * largest * inverse * std::fabs(row.gamma[i]) +
                         2 * kUnit * std::fabs(expected);
    near &= std::fabs(row.out[i] - expected) <= bound;
  }
  CHECK_TRUE(near, "layer_norm " + context);
}

int64_t CheckAgainstPortable(const FusedFunctions& functions, const std::string& name) {
  Random random(kSeed);
  int64_t comparisons = 0;
  for (int64_t n : RowLengths()) {
    for (float mean : {0.0f, 20.0f}) {
      const Row row(n, 3.0f, mean, &random);
      const Row other(n, 1.0f, 0.0f, &random);
      const std::string context = name + " n=" + std::to_string(n) + " seed 41";
      const FusedFunctions& portable = PortableFusedFunctions();
      portable.rms_norm(row.x.data(), n, row.gamma.data(), 1e-6f, row.out.data());
      functions.rms_norm(row.x.data(), n, row.gamma.data(), 1e-6f, other.out.data());
      CHECK_TRUE(SameBits(row.out, other.out), "rms_norm " + context);
      portable.layer_norm(row.x.data(), n, row.gamma.data(), row.beta.data(), 1e-5f,
                          row.out.data());
      functions.layer_norm(row.x.data(), n, row.gamma.data(), row.beta.data(), 1e-5f,
                           other.out.data());
      CHECK_TRUE(SameBits(row.out, other.out), "layer_norm " + context);
      comparisons += 2;
    }
  }
  return comparisons;
}

// Many rows on threads are the rows one by one.
void CheckRows(ThreadPool* pool) {
  Random random(kSeed);
  for (int64_t rows : {0, 1, 7, 300}) {
    const int64_t n = 129;
    Aligned<float> x(rows * n), gamma(n), beta(n), out(rows * n), expected(rows * n);
    FillFloats(&random, 2.0f, 0.5f, &x);
    FillFloats(&random, 1.0f, 1.0f, &gamma);
    FillFloats(&random, 1.0f, 0.0f, &beta);
    const FusedFunctions& functions = *SelectFused(TestCpu());
    for (bool layer : {false, true}) {
      for (int64_t r = 0; r < rows; ++r) {
        const float* from = x.data() + r * n;
        float* to = expected.data() + r * n;
        if (layer) {
          functions.layer_norm(from, n, gamma.data(), beta.data(), 1e-5f, to);
        } else {
          functions.rms_norm(from, n, gamma.data(), 1e-5f, to);
        }
      }
      for (ThreadPool* p : {static_cast<ThreadPool*>(nullptr), pool}) {
        std::fill(out.data(), out.data() + rows * n, -1.0f);
        if (layer) {
          LayerNorm(x.data(), rows, n, gamma.data(), beta.data(), 1e-5f, functions, p, out.data());
        } else {
          RmsNorm(x.data(), rows, n, gamma.data(), 1e-5f, functions, p, out.data());
        }
        CHECK_TRUE(SameBits(out, expected), std::to_string(rows) + " rows");
      }
    }
  }
}

void CheckSpecialRows() {
  const int64_t n = 40;
  Random random(kSeed);
  Row row(n, 1.0f, 0.0f, &random);
  const FusedFunctions& functions = PortableFusedFunctions();
  std::fill(row.x.data(), row.x.data() + n, 0.0f);
  functions.rms_norm(row.x.data(), n, row.gamma.data(), 1e-6f, row.out.data());
  for (int64_t i = 0; i < n; ++i) CHECK_EQUAL(row.out[i], 0.0f, "zeros");
  std::fill(row.x.data(), row.x.data() + n, -7.0f);
  functions.layer_norm(row.x.data(), n, row.gamma.data(), row.beta.data(), 1e-6f, row.out.data());
  for (int64_t i = 0; i < n; ++i) CHECK_EQUAL(row.out[i], row.beta[i], "all equal");
  row.x[n - 1] = NAN;
  functions.rms_norm(row.x.data(), n, row.gamma.data(), 1e-6f, row.out.data());
  CHECK_TRUE(std::isnan(row.out[0]) && std::isnan(row.out[n - 1]), "a NaN spoils its row");
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  using tfmot_ternary::RowLengths;
  tfmot_ternary::ForEachFused(tfmot_ternary::CheckAgainstPortable);
  tfmot_ternary::Random random(tfmot_ternary::kSeed);
  for (int64_t n : RowLengths()) {
    for (float mean : {0.0f, 20.0f}) {
      for (float range : {1e-3f, 1.0f, 100.0f}) {
        const tfmot_ternary::Row row(n, range, mean * range, &random);
        tfmot_ternary::CheckAgainstFloat64(row, 1e-6f, "n=" + std::to_string(n) + " seed 41");
      }
    }
  }
  tfmot_ternary::ThreadPool pool(3);
  tfmot_ternary::CheckRows(&pool);
  tfmot_ternary::CheckSpecialRows();
  return tfmot_ternary::Finish("normalization_test");
}
