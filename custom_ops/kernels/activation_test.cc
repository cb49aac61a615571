// exp and the activation functions: every instruction set is near float64 over the whole range of
// float32.
#include "custom_ops/kernels/activation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/fused_test.h"
#include "custom_ops/kernels/vector_exp.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 42;
constexpr ActivationKind kKinds[] = {ActivationKind::kGelu, ActivationKind::kGeluTanh,
                                     ActivationKind::kSilu};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kSmallest = std::numeric_limits<float>::min();

double Exact(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::kGelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case ActivationKind::kGeluTanh: {
      const double u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
      return x / (1 + std::exp(-2 * u));
    }
    default:
      return x / (1 + std::exp(-x));
  }
}

// A grid fine near zero and coarse far away, both signs; then every power of two.
template <class Check>
void ForEachInput(Check check) {
  for (int i = 0; i <= 400000; ++i) {
    const float x = static_cast<float>(i) * 2.6e-4f;  // to 104
    check(x);
    check(-x);
  }
  for (int e = -149; e < 128; ++e) {
    check(std::ldexp(1.0f, e));
    check(-std::ldexp(1.0f, e));
  }
}

void CheckExp() {
  double worst = 0;
  ForEachInput([&](float x) {
    const double exact = std::exp(static_cast<double>(x));
    const float got = VectorExp(x);
    if (exact > std::numeric_limits<float>::max() * (1.0 - 1e-6)) {
      CHECK_TRUE(got > 3.4e38f, std::to_string(x));
    } else if (exact < kSmallest * (1 + 1e-6)) {
      CHECK_TRUE(got >= 0 && got < 1.2e-38f, std::to_string(x));
    } else {
      worst = std::max(worst, std::fabs(got - exact) / exact);
    }
  });
  std::printf("exp: relative error %.3g\n", worst);
  CHECK_TRUE(worst < 2e-7, std::to_string(worst));
  CHECK_EQUAL(VectorExp(kInfinity), kInfinity, "exp(inf)");
  CHECK_EQUAL(VectorExp(-kInfinity), 0.0f, "exp(-inf)");
  CHECK_EQUAL(VectorExp(0.0f), 1.0f, "exp(0)");
  CHECK_TRUE(std::isnan(VectorExp(NAN)), "exp(nan)");
}

// The bounds of activation_body.h.
int64_t CheckAgainstFloat64(const FusedFunctions& functions, const std::string& kernel,
                            ActivationKind kind) {
  const std::string name = kernel + " " + std::to_string(static_cast<int>(kind));
  double worst = 0;
  ForEachInput([&](float x) {
    float got;
    functions.activate(&x, 1, kind, &got);
    const double exact = Exact(kind, x);
    double bound = std::fabs(static_cast<double>(x));
    if (kind == ActivationKind::kSilu) bound = std::fabs(exact) + 1e-28;
    // Below the normal numbers there are no digits to keep.
    bound = std::max(bound, 1e7 * kSmallest);
    worst = std::max(worst, std::fabs(got - exact) / bound);
  });
  std::printf("activation of %s: error %.3g\n", name.c_str(), worst);
  CHECK_TRUE(worst < 4e-7, name + " " + std::to_string(worst));

  const float special[] = {0.0f, kInfinity, NAN, -1e30f, 1e30f};
  float got[5];
  functions.activate(special, 5, kind, got);
  CHECK_EQUAL(got[0], 0.0f, name);
  CHECK_EQUAL(got[1], kInfinity, name);
  CHECK_TRUE(std::isnan(got[2]), name);
  CHECK_EQUAL(got[3], 0.0f, name);
  CHECK_EQUAL(got[4], 1e30f, name);
  return 1;
}

// A row gives what its values give one by one: the ends of vectors are as good as the rest.
int64_t CheckRows(const FusedFunctions& functions, const std::string& name) {
  Random random(kSeed);
  int64_t comparisons = 0;
  for (int64_t n : RowLengths()) {
    Aligned<float> x(n), expected(n), got(n);
    FillFloats(&random, n % 2 == 0 ? 5.0f : 200.0f, 0.0f, &x);
    x[n / 2] = NAN;
    for (ActivationKind kind : kKinds) {
      for (int64_t i = 0; i < n; ++i) functions.activate(&x[i], 1, kind, &expected[i]);
      functions.activate(x.data(), n, kind, got.data());
      CHECK_TRUE(SameBits(got, expected), name + " n=" + std::to_string(n) + " seed 42");
      ++comparisons;
    }
  }
  return comparisons;
}

int64_t CheckKernel(const FusedFunctions& functions, const std::string& name) {
  int64_t comparisons = CheckRows(functions, name);
  for (ActivationKind kind : kKinds) comparisons += CheckAgainstFloat64(functions, name, kind);
  return comparisons;
}

void CheckThreads(ThreadPool* pool) {
  Random random(kSeed);
  for (int64_t n : {0, 1, 8191, 8192, 8193, 50000}) {
    Aligned<float> x(n), expected(n), got(n);
    FillFloats(&random, 3.0f, 0.0f, &x);
    const FusedFunctions& functions = *SelectFused(TestCpu());
    functions.activate(x.data(), n, ActivationKind::kGelu, expected.data());
    for (ThreadPool* p : {static_cast<ThreadPool*>(nullptr), pool}) {
      std::fill(got.data(), got.data() + n, -1.0f);
      ActivateAll(x.data(), n, ActivationKind::kGelu, functions, p, got.data());
      CHECK_TRUE(SameBits(got, expected), std::to_string(n) + " values");
    }
  }
}

void CheckTokens() {
  ActivationKind kind = ActivationKind::kGelu;
  CHECK_TRUE(ParseActivationKind("silu", &kind) && kind == ActivationKind::kSilu, "silu");
  CHECK_TRUE(ParseActivationKind("gelu_tanh", &kind) && kind == ActivationKind::kGeluTanh, "tanh");
  CHECK_TRUE(!ParseActivationKind("relu", &kind) && !ParseActivationKind(nullptr, &kind), "relu");
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::CheckExp();
  tfmot_ternary::ForEachFused(tfmot_ternary::CheckKernel);
  tfmot_ternary::ThreadPool pool(3);
  tfmot_ternary::CheckThreads(&pool);
  tfmot_ternary::CheckTokens();
  return tfmot_ternary::Finish("activation_test");
}
