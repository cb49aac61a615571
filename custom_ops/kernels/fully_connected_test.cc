// fully_connected against float64, and the same bits at every level of the CPU and number of
// threads.
#include "custom_ops/kernels/fully_connected.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/test_matrix.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 42;
constexpr double kUnit = 1.0 / (1 << 24);  // relative rounding error of float32

double Activate(double y, Activation activation) {
  if (activation != Activation::kNone) y = std::max(y, 0.0);
  return activation == Activation::kRelu6 ? std::min(y, 6.0) : y;
}

struct Call {
  const TestMatrix& matrix;
  const std::vector<float>& x;
  int64_t m;
  Epilogue epilogue;

  std::vector<float> Run(Activations activations, const char* level, ThreadPool* pool) const {
    const int threads = pool == nullptr ? 1 : pool->num_threads();
    Aligned<uint8_t> workspace(static_cast<int64_t>(
        FullyConnectedWorkspaceBytes(matrix.weights, m, activations, threads)));
    // What an earlier call left there must not matter.
    std::memset(workspace.data(), 0x7f, workspace.size());
    Aligned<float> y(m * matrix.weights.n);
    FullyConnected(matrix.weights, x.data(), m, epilogue, activations,
                   KernelsAt(level, matrix.weights.format), workspace.data(), pool, y.data());
    return std::vector<float>(y.data(), y.data() + y.size());
  }
};

// The bound of |y - float64|. s = sum of |w| * scale * |x|, b = |bias|.
//  int8:    each x is off by half a step, scale_x / 2 (1 + 2^-10: the roundings of x * inverse and
//           of scale_x), so that the sum is off by at most half a step times sum of |w| * scale.
//           Then come float32 roundings of values of at most s + b + that: acc and its product, one
//           addition for each group, scale_x and its product, the bias: groups + 6 with what the
//           products of two roundings add.
//  float32: each addend passes at most k / 16 + 5 roundings in its group (16 chains, put together
//           in 4 steps), then groups + 3 (the scale, an addition for each group, the bias).
// An activation only brings values closer together.
void CheckValues(const Call& call, Activations activations, const std::vector<float>& y,
                 const std::string& context) {
  const PackedWeights& weights = call.matrix.weights;
  const double groups = static_cast<double>(GroupCount(weights));
  for (int64_t i = 0; i < call.m; ++i) {
    const float* x = &call.x[i * weights.k];
    double largest = 0.0;
    for (int64_t j = 0; j < weights.k; ++j) largest = std::max(largest, std::fabs(double{x[j]}));
    for (int64_t r = 0; r < weights.n; ++r) {
      double exact = 0.0, magnitude = 0.0, weight_sum = 0.0;
      for (int64_t j = 0; j < weights.k; ++j) {
        const double w = call.matrix.Weight(r, j);
        exact += w * x[j];
        magnitude += std::fabs(w * x[j]);
        weight_sum += std::fabs(w);
      }
      double bias = call.epilogue.bias == nullptr ? 0.0 : call.epilogue.bias[r];
      double bound;
      if (activations == Activations::kInt8) {
        const double steps = weight_sum * largest / 254.0 * (1.0 + 1.0 / 1024);
        bound = steps + (groups + 6) * kUnit * (magnitude + steps + std::fabs(bias));
      } else {
        const double roundings = static_cast<double>(weights.k) / 16 + groups + 8;
        bound = roundings * kUnit * (magnitude + std::fabs(bias));
      }
      const double expected = Activate(exact + bias, call.epilogue.activation);
      const double error = std::fabs(y[i * weights.n + r] - expected);
      CHECK_TRUE(error <= bound,
                 context + " error " + std::to_string(error) + " bound " + std::to_string(bound));
    }
  }
}

void CheckCase(Format format, int64_t n, int64_t k, int64_t group_size, int64_t m,
               Activation activation, bool has_bias, ThreadPool* const* pools, int pool_count,
               Random* random) {
  const TestMatrix matrix(format, n, k, group_size, random);
  std::vector<float> x(m * k), bias(n);
  for (float& value : x) value = 5.0f * random->Float() * random->Float() * random->Float();
  for (float& value : bias) value = random->Float();
  const Call call = {matrix, x, m, {has_bias ? bias.data() : nullptr, activation}};
  const std::string context = matrix.Describe(kSeed) + " m=" + std::to_string(m);
  for (Activations activations : {Activations::kInt8, Activations::kFloat32}) {
    const std::vector<float> y = call.Run(activations, "portable", nullptr);
    CheckValues(call, activations, y, context);
    for (const char* level : kCpuLevels) {
      CHECK_TRUE(call.Run(activations, level, nullptr) == y, context + " at " + level);
      for (int i = 0; i < pool_count; ++i) {
        CHECK_TRUE(call.Run(activations, level, pools[i]) == y,
                   context + " at " + level + " on " + std::to_string(pools[i]->num_threads()) +
                       " threads");
      }
    }
  }
}

void CheckSizes(ThreadPool* const* pools, int pool_count) {
  Random random(kSeed);
  int number = 0;
  for (Format format : kFormats) {
    for (int64_t k : {1, 31, 64, 255, 320, 513}) {
      for (int64_t group_size : {-1, 0, 32, 64, 128, 256}) {
        for (int64_t n : {1, 9, 33}) {
          const int64_t m = number % 8 == 7 ? 65 : number % 4 == 3 ? 33 : 1 + number % 5;
          CheckCase(format, n, k, group_size, m, static_cast<Activation>(number % 3),
                    number % 2 == 0, pools, pool_count, &random);
          ++number;
        }
      }
    }
    // More rows of x than a slab; few rows of W, so that x is split over the threads; long rows.
    CheckCase(format, 3, 96, 32, 523, Activation::kNone, true, pools, pool_count, &random);
    CheckCase(format, 70, 40, 0, 300, Activation::kRelu, false, pools, pool_count, &random);
    CheckCase(format, 5, 33000, 0, 13, Activation::kNone, false, pools, pool_count, &random);
    CheckCase(format, 3, 100000, 0, 1, Activation::kNone, true, pools, pool_count, &random);
    CheckCase(format, 3, 99999, 128, 3, Activation::kNone, false, pools, pool_count, &random);
    CheckCase(format, 130, 2048, 128, 2, Activation::kNone, false, pools, pool_count, &random);
  }
}

// A value that is not finite makes its row NaN (int8) and leaves the others alone.
void CheckNotFinite() {
  Random random(kSeed);
  const TestMatrix matrix(Format::kT2, 20, 100, 64, &random);
  std::vector<float> x(3 * 100, 0.5f);
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    x[100 + 42] = bad;
    const Call call = {matrix, x, 3, {nullptr, Activation::kRelu6}};
    for (const char* level : kCpuLevels) {
      const std::vector<float> y = call.Run(Activations::kInt8, level, nullptr);
      for (int64_t i = 0; i < 60; ++i) {
        CHECK_EQUAL(std::isnan(y[i]), i / 20 == 1, std::string("at ") + level);
      }
    }
  }
}

// Rows of zeros, and scales of zero, give the bias.
void CheckGivesBias(const TestMatrix& matrix, float value) {
  const std::vector<float> x(matrix.weights.k, value), bias(matrix.weights.n, 0.25f);
  const Call call = {matrix, x, 1, {bias.data(), Activation::kNone}};
  for (const char* level : kCpuLevels) {
    CHECK_TRUE(call.Run(Activations::kInt8, level, nullptr) == bias, level);
  }
}

void CheckZeros() {
  Random random(kSeed);
  TestMatrix matrix(Format::kB1, 17, 65, 0, &random);
  CheckGivesBias(matrix, 0.0f);
  std::memset(matrix.scales.data(), 0, matrix.scales.size() * sizeof(float));
  CheckGivesBias(matrix, 1.0f);
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::ThreadPool two(2), three(3);
  tfmot_ternary::ThreadPool* const pools[] = {&two, &three};
  tfmot_ternary::CheckSizes(pools, 2);
  tfmot_ternary::CheckNotFinite();
  tfmot_ternary::CheckZeros();
  return tfmot_ternary::Finish("fully_connected_test");
}
