// Rotary embedding: cosines and sines, and the rotation of pairs, in loops that compilers
// vectorise.
#ifndef TFMOT_TERNARY_KERNELS_ROTARY_BODY_H_
#define TFMOT_TERNARY_KERNELS_ROTARY_BODY_H_

#include <cstdint>
#include <cstring>

#include "custom_ops/kernels/fused.h"

#define TFMOT_TERNARY_FUSED_INLINE inline __attribute__((always_inline))

namespace tfmot_ternary {
namespace rotary_body {

// cos and sin of `angle` in float64, error below 1e-10 for |angle| < 2^20: the position of a token
// times a frequency of at most 1. Larger angles lose digits as angle * 2^-53.
TFMOT_TERNARY_FUSED_INLINE void CosSin(double angle, double* cosine, double* sine) {
  constexpr double kTwoOverPi = 0.63661977236758134308;
  // pi / 2 in two parts: n * kHigh is exact for |n| < 2^20, because its last 20 bits are zero.
  constexpr double kHigh = 1.57079632673412561417;
  constexpr double kLow = 6.07710050650619224932e-11;
  // Adding 1.5 * 2^52 leaves no bits below one: the sum's low bits are the nearest integer.
  constexpr double kMagic = 6755399441055744.0;

  const double shifted = angle * kTwoOverPi + kMagic;
  const double n = shifted - kMagic;
  int64_t quadrant;
  std::memcpy(&quadrant, &shifted, sizeof(quadrant));
  const double r = (angle - n * kHigh) - n * kLow;  // |r| <= pi / 4
  const double u = r * r;
  // The series of Taylor; what is left out is below 1e-11.
  double s = -1.0 / 39916800;
  s = s * u + 1.0 / 362880;
  s = s * u - 1.0 / 5040;
  s = s * u + 1.0 / 120;
  s = s * u - 1.0 / 6;
  s = r + r * u * s;
  double c = 1.0 / 479001600;
  c = c * u - 1.0 / 3628800;
  c = c * u + 1.0 / 40320;
  c = c * u - 1.0 / 720;
  c = c * u + 1.0 / 24;
  c = c * u - 0.5;
  c = 1.0 + c * u;
  // Quadrants 0 to 3: (c, s), (-s, c), (-c, -s), (s, -c).
  const bool swap = (quadrant & 1) != 0;
  const double unsigned_cosine = swap ? s : c;
  const double unsigned_sine = swap ? c : s;
  *cosine = ((quadrant + 1) & 2) != 0 ? -unsigned_cosine : unsigned_cosine;
  *sine = (quadrant & 2) != 0 ? -unsigned_sine : unsigned_sine;
}

TFMOT_TERNARY_FUSED_INLINE void Waves(const float* __restrict__ inverse_frequencies, int64_t count,
                                      float position, float amplitude, float* __restrict__ cosines,
                                      float* __restrict__ sines) {
  for (int64_t i = 0; i < count; ++i) {
    double cosine, sine;
    CosSin(position * inverse_frequencies[i], &cosine, &sine);
    cosines[i] = amplitude * static_cast<float>(cosine);
    sines[i] = amplitude * static_cast<float>(sine);
  }
}

template <int step, int out_step>
TFMOT_TERNARY_FUSED_INLINE void RotateSteps(const float* first, const float* second, int64_t count,
                                            const float* __restrict__ cosines,
                                            const float* __restrict__ sines, float* out_first,
                                            float* out_second) {
  for (int64_t i = 0; i < count; ++i) {
    const float a = first[i * step];
    const float b = second[i * step];
    out_first[i * out_step] = a * cosines[i] - b * sines[i];
    out_second[i * out_step] = b * cosines[i] + a * sines[i];
  }
}

TFMOT_TERNARY_FUSED_INLINE void Rotate(const float* first, const float* second, int64_t count,
                                       PairLayout layout, const float* cosines, const float* sines,
                                       PairLayout out_layout, float* out_first, float* out_second) {
  // Neighbours are named by their distance, so that a compiler sees one stream.
  const bool pairs = layout == PairLayout::kPairs;
  const bool out_pairs = out_layout == PairLayout::kPairs;
  if (pairs && out_pairs) {
    RotateSteps<2, 2>(first, first + 1, count, cosines, sines, out_first, out_first + 1);
  } else if (pairs) {
    RotateSteps<2, 1>(first, first + 1, count, cosines, sines, out_first, out_second);
  } else if (out_pairs) {
    RotateSteps<1, 2>(first, second, count, cosines, sines, out_first, out_first + 1);
  } else {
    RotateSteps<1, 1>(first, second, count, cosines, sines, out_first, out_second);
  }
}

}  // namespace rotary_body
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ROTARY_BODY_H_
