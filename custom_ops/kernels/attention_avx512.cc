// AVX-512 with VNNI: attention.
#if defined(__x86_64__)

#include <cstring>

#include "custom_ops/kernels/avx512.h"

#define TFMOT_TERNARY_ATTENTION_TARGET \
  __attribute__((target(TFMOT_TERNARY_AVX512_FEATURES ",avx512vnni,fma,f16c")))
#include "custom_ops/kernels/attention_body.h"

namespace tfmot_ternary {
namespace {

struct Avx512Isa {
  static constexpr int kRows = 12;
  static constexpr int kColumns = 2;
  static constexpr int kNarrow = 4;
  static constexpr int kCodeRows = 12;

  using Floats = __m512;

  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const float* x) { return _mm512_loadu_ps(x); }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const uint16_t* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const int8_t* x) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE void Store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
  static TFMOT_TERNARY_ATTENTION_INLINE void StoreHalf(uint16_t* to, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Zero() { return _mm512_setzero_ps(); }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Broadcast(float x) { return _mm512_set1_ps(x); }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Fma(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Add(Floats a, Floats b) {
    return _mm512_add_ps(a, b);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Mul(Floats a, Floats b) {
    return _mm512_mul_ps(a, b);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Max(Floats a, Floats b) {
    return _mm512_max_ps(a, b);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats AddPower(Floats x, Floats shifted) {
    return _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(x), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats KeepFrom(Floats x, Floats limit, Floats value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), value);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float Largest(Floats x) { return _mm512_reduce_max_ps(x); }
  static TFMOT_TERNARY_ATTENTION_INLINE float Sum(Floats x) { return _mm512_reduce_add_ps(x); }

  using Sums = __m512i;

  static TFMOT_TERNARY_ATTENTION_INLINE Sums ZeroSums() { return _mm512_setzero_si512(); }
  static TFMOT_TERNARY_ATTENTION_INLINE void AddProducts(const uint8_t* keys, const int8_t* codes,
                                                         Sums* sums) {
    int32_t four;
    std::memcpy(&four, codes, sizeof(four));
    avx512::DotBytes(_mm512_loadu_si512(keys), _mm512_set1_epi32(four), sums);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Finish(Sums sums, int32_t correction) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(correction)));
  }
};

}  // namespace

extern const AttentionFunctions Avx512Attention;
const AttentionFunctions Avx512Attention = {attention_body::Attend<Avx512Isa>,
                                            attention_body::ToHalf<Avx512Isa>};

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
