// The bodies of FusedFunctions, written once. A file that wants them for its instruction set says
//
//   TFMOT_TERNARY_DEFINE_FUSED(Avx2Fused, __attribute__((target("avx2"))), Activate)
//
// with the function for FusedFunctions::activate (activation_body::Activate in a function of that
// target, or its own).
//
// The bodies are loops that compilers vectorise; every operation is an IEEE operation whose order
// does not depend on the vector width, and the build forbids contraction to FMA, so that all
// compilations agree bit for bit.
#ifndef TFMOT_TERNARY_KERNELS_FUSED_BODY_H_
#define TFMOT_TERNARY_KERNELS_FUSED_BODY_H_

#include <cstdint>

#include "custom_ops/kernels/activation_body.h"
#include "custom_ops/kernels/fused.h"
#include "custom_ops/kernels/normalization_body.h"
#include "custom_ops/kernels/rotary_body.h"

// Defines `extern const FusedFunctions name` in the namespace of the place of use.
#define TFMOT_TERNARY_DEFINE_FUSED(name, target, activate)                                        \
  namespace name##_detail {                                                                       \
    target void RmsNorm(const float* x, int64_t count, const float* scale, float epsilon,         \
                        float* out) {                                                             \
      normalization_body::RmsNorm(x, count, scale, epsilon, out);                                 \
    }                                                                                             \
    target void LayerNorm(const float* x, int64_t count, const float* gamma, const float* beta,   \
                          float epsilon, float* out) {                                            \
      normalization_body::LayerNorm(x, count, gamma, beta, epsilon, out);                         \
    }                                                                                             \
    target void Waves(const float* inverse_frequencies, int64_t count, float position,            \
                      float amplitude, float* cosines, float* sines) {                            \
      rotary_body::Waves(inverse_frequencies, count, position, amplitude, cosines, sines);        \
    }                                                                                             \
    target void Rotate(const float* first, const float* second, int64_t count, PairLayout layout, \
                       const float* cosines, const float* sines, PairLayout out_layout,           \
                       float* out_first, float* out_second) {                                     \
      rotary_body::Rotate(first, second, count, layout, cosines, sines, out_layout, out_first,    \
                          out_second);                                                            \
    }                                                                                             \
  }                                                                                               \
  extern const FusedFunctions name;                                                               \
  const FusedFunctions name = {                                                                   \
      name##_detail::RmsNorm, name##_detail::LayerNorm, activate,                                 \
      name##_detail::Waves,   name##_detail::Rotate,                                              \
  };

#endif  // TFMOT_TERNARY_KERNELS_FUSED_BODY_H_
