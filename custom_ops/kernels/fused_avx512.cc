// AVX-512: norms, activations, rotary embedding.
//
// The activations are written out: a division of a vector takes as long as all the rest of one, and
// no compiler puts an approximate reciprocal in its place.
#if defined(__x86_64__)

#include "custom_ops/kernels/avx512.h"
#include "custom_ops/kernels/fused_body.h"

namespace tfmot_ternary {
namespace {

TFMOT_TERNARY_AVX512_INLINE __m512 Multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }

// a * b + c, rounded once.
TFMOT_TERNARY_AVX512_INLINE __m512 MultiplyAdd(__m512 a, __m512 b, float c) {
  return _mm512_fmadd_ps(a, b, _mm512_set1_ps(c));
}

// 1 / x, relative error below 2e-7, for x from 2^-126 to 2^126.
TFMOT_TERNARY_AVX512_INLINE __m512 Reciprocal(__m512 x) {
  const __m512 guess = _mm512_rcp14_ps(x);
  const __m512 error = _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(1.0f));
  return _mm512_fmadd_ps(guess, error, guess);
}

// x / (1 + e^-u), for u below -kLargest -0. See VectorExp, whose polynomial this is.
TFMOT_TERNARY_AVX512_INLINE __m512 TimesSigmoid(__m512 x, __m512 u) {
  constexpr float kLargest = 86.0f;  // the reciprocal of e^kLargest is a normal number
  const __m512 negative = _mm512_xor_ps(u, _mm512_set1_ps(-0.0f));
  // The second operand is what these give for a NaN.
  __m512 v = _mm512_min_ps(_mm512_set1_ps(kLargest), negative);
  v = _mm512_max_ps(_mm512_set1_ps(-kLargest), v);
  const __m512 n = _mm512_roundscale_ps(Multiply(v, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), v);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.38144672e-3f);
  p = MultiplyAdd(p, r, 8.36878084e-3f);
  p = MultiplyAdd(p, r, 4.16683927e-2f);
  p = MultiplyAdd(p, r, 1.66665196e-1f);
  p = MultiplyAdd(p, r, 4.99999940e-1f);
  p = MultiplyAdd(_mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f)), r, 1.0f);
  const __m512 one_more = _mm512_add_ps(_mm512_scalef_ps(p, n), _mm512_set1_ps(1.0f));
  const __mmask16 vanishes = _mm512_cmp_ps_mask(negative, _mm512_set1_ps(kLargest), _CMP_GT_OQ);
  return _mm512_mask_mov_ps(Multiply(x, Reciprocal(one_more)), vanishes, _mm512_set1_ps(-0.0f));
}

struct Silu {
  TFMOT_TERNARY_AVX512_INLINE __m512 operator()(__m512 x) const { return TimesSigmoid(x, x); }
};

struct GeluTanh {
  TFMOT_TERNARY_AVX512_INLINE __m512 operator()(__m512 x) const {
    const __m512 factor = MultiplyAdd(Multiply(x, x), _mm512_set1_ps(0.0713548163f), 1.59576912f);
    return TimesSigmoid(x, Multiply(x, factor));
  }
};

// See activation_body::Erf, whose polynomials these are.
struct Gelu {
  TFMOT_TERNARY_AVX512_INLINE __m512 operator()(__m512 x) const {
    const __m512 z = Multiply(x, _mm512_set1_ps(0.707106781f));
    const __m512 sixteen = _mm512_set1_ps(16.0f);
    const __m512 square = Multiply(z, z);
    const __mmask16 outside = _mm512_cmp_ps_mask(square, sixteen, _CMP_GE_OQ);
    const __m512 u = _mm512_min_ps(sixteen, square);
    __m512 p = _mm512_set1_ps(1.98679322e-6f);
    p = MultiplyAdd(p, u, 2.84564652e-4f);
    p = MultiplyAdd(p, u, 3.88328684e-3f);
    p = MultiplyAdd(p, u, 5.31015694e-2f);
    p = MultiplyAdd(p, u, 1.93543732e-1f);
    p = MultiplyAdd(p, u, 1.12837911f);
    __m512 q = _mm512_set1_ps(3.74202209e-5f);
    q = MultiplyAdd(q, u, 1.18555734e-3f);
    q = MultiplyAdd(q, u, 1.52071370e-2f);
    q = MultiplyAdd(q, u, 1.15349449e-1f);
    q = MultiplyAdd(q, u, 5.04856229e-1f);
    q = MultiplyAdd(q, u, 1.0f);
    const __m512 inside = Multiply(Multiply(z, p), Reciprocal(q));
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 sign = _mm512_or_ps(_mm512_and_ps(z, _mm512_set1_ps(-0.0f)), one);
    const __m512 erf = _mm512_mask_mov_ps(inside, outside, sign);
    return Multiply(Multiply(x, _mm512_set1_ps(0.5f)), _mm512_add_ps(one, erf));
  }
};

template <class Function>
TFMOT_TERNARY_AVX512_INLINE void ForEach(const float* x, int64_t count, Function function,
                                         float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) _mm512_storeu_ps(out + i, function(_mm512_loadu_ps(x + i)));
  if (i == count) return;
  const __mmask16 mask = static_cast<__mmask16>((1u << (count - i)) - 1);
  _mm512_mask_storeu_ps(out + i, mask, function(_mm512_maskz_loadu_ps(mask, x + i)));
}

TFMOT_TERNARY_AVX512 void Activate(const float* x, int64_t count, ActivationKind kind, float* out) {
  if (kind == ActivationKind::kGelu) {
    ForEach(x, count, Gelu(), out);
  } else if (kind == ActivationKind::kGeluTanh) {
    ForEach(x, count, GeluTanh(), out);
  } else {
    ForEach(x, count, Silu(), out);
  }
}

}  // namespace

// Compilers' own choice is vectors of 256 bits.
TFMOT_TERNARY_DEFINE_FUSED(
    Avx512Fused, __attribute__((target(TFMOT_TERNARY_AVX512_FEATURES ",prefer-vector-width=512"))),
    Activate)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
