// Norms of one row, in loops that compilers vectorise.
#ifndef TFMOT_TERNARY_KERNELS_NORMALIZATION_BODY_H_
#define TFMOT_TERNARY_KERNELS_NORMALIZATION_BODY_H_

#include <cmath>
#include <cstdint>

#define TFMOT_TERNARY_FUSED_INLINE inline __attribute__((always_inline))

namespace tfmot_ternary {
namespace normalization_body {

// A sum in 32 chains: value i belongs to chain i % 32, chains grow in ascending order and are added
// up as a tree. Its relative error for values of one sign is below (count / 32 + 6) 2^-24.
constexpr int kChains = 32;

// The sum of Term(x[i]); Term is a type with operator()(float).
template <class Term>
TFMOT_TERNARY_FUSED_INLINE float Sum(const float* x, int64_t count, Term term) {
  float chains[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int j = 0; j < kChains; ++j) chains[j] += term(x[i + j]);
  }
  for (int j = 0; i + j < count; ++j) chains[j] += term(x[i + j]);
  for (int half = kChains / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) chains[j] += chains[j + half];
  }
  return chains[0];
}

struct Value {
  TFMOT_TERNARY_FUSED_INLINE float operator()(float x) const { return x; }
};

struct SquaredDistance {
  float from;
  TFMOT_TERNARY_FUSED_INLINE float operator()(float x) const { return (x - from) * (x - from); }
};

TFMOT_TERNARY_FUSED_INLINE void RmsNorm(const float* __restrict__ x, int64_t count,
                                        const float* __restrict__ scale, float epsilon,
                                        float* __restrict__ out) {
  const float mean_square = Sum(x, count, SquaredDistance{0.0f}) / static_cast<float>(count);
  const float inverse = 1.0f / std::sqrt(mean_square + epsilon);
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] * inverse * scale[i];
}

TFMOT_TERNARY_FUSED_INLINE void LayerNorm(const float* __restrict__ x, int64_t count,
                                          const float* __restrict__ gamma,
                                          const float* __restrict__ beta, float epsilon,
                                          float* __restrict__ out) {
  const float mean = Sum(x, count, Value{}) / static_cast<float>(count);
  const float variance = Sum(x, count, SquaredDistance{mean}) / static_cast<float>(count);
  const float inverse = 1.0f / std::sqrt(variance + epsilon);
  for (int64_t i = 0; i < count; ++i) out[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
}

}  // namespace normalization_body
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_NORMALIZATION_BODY_H_
