// Activation functions of one value, for loops that compilers vectorise.
#ifndef TFMOT_TERNARY_KERNELS_ACTIVATION_BODY_H_
#define TFMOT_TERNARY_KERNELS_ACTIVATION_BODY_H_

#include <cstdint>

#include "custom_ops/kernels/fused.h"
#include "custom_ops/kernels/vector_exp.h"

#define TFMOT_TERNARY_FUSED_INLINE inline __attribute__((always_inline))

namespace tfmot_ternary {
namespace activation_body {

// x / (1 + e^-x). Relative error below 4e-7; below x = -86 it may be -0, and is where e^-x
// overflows.
TFMOT_TERNARY_FUSED_INLINE float Silu(float x) { return x / (1.0f + VectorExp(-x)); }

// x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3): unlike the sum with
// the tanh, it keeps its digits where tanh is near -1. Error below 4e-7 |x|.
TFMOT_TERNARY_FUSED_INLINE float GeluTanh(float x) {
  constexpr float kTwoRootTwoOverPi = 1.59576912f;  // 2 sqrt(2 / pi)
  constexpr float kCubic = 0.0713548163f;           // the same times 0.044715
  const float u = x * (kTwoRootTwoOverPi + kCubic * (x * x));
  return x / (1.0f + VectorExp(-u));
}

// erf(z) = z p(z^2) / q(z^2) for |z| < 4, fitted to a relative error of 2.5e-8; 1 from there on.
// Relative error below 4e-7.
TFMOT_TERNARY_FUSED_INLINE float Erf(float z) {
  const float u = z * z;
  float p = 1.98679322e-6f;
  p = p * u + 2.84564652e-4f;
  p = p * u + 3.88328684e-3f;
  p = p * u + 5.31015694e-2f;
  p = p * u + 1.93543732e-1f;
  p = p * u + 1.12837911f;
  float q = 3.74202209e-5f;
  q = q * u + 1.18555734e-3f;
  q = q * u + 1.52071370e-2f;
  q = q * u + 1.15349449e-1f;
  q = q * u + 5.04856229e-1f;
  q = q * u + 1.0f;
  const float inside = z * p / q;
  const float sign = VectorSelect(z < 0.0f, -1.0f, 1.0f);
  return VectorSelect(u >= 16.0f, sign, inside);
}

// x (1 + erf(x / sqrt(2))) / 2. Error below 4e-7 |x|.
TFMOT_TERNARY_FUSED_INLINE float Gelu(float x) {
  constexpr float kRootHalf = 0.707106781f;
  return 0.5f * x * (1.0f + Erf(x * kRootHalf));
}

TFMOT_TERNARY_FUSED_INLINE void Activate(const float* __restrict__ x, int64_t count,
                                         ActivationKind kind, float* __restrict__ out) {
  if (kind == ActivationKind::kGelu) {
    for (int64_t i = 0; i < count; ++i) out[i] = Gelu(x[i]);
  } else if (kind == ActivationKind::kGeluTanh) {
    for (int64_t i = 0; i < count; ++i) out[i] = GeluTanh(x[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = Silu(x[i]);
  }
}

}  // namespace activation_body
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ACTIVATION_BODY_H_
