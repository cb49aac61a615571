// AVX2 with FMA and F16C: attention.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#define TFMOT_TERNARY_ATTENTION_TARGET __attribute__((target("avx2,fma,f16c")))
#include "custom_ops/kernels/attention_body.h"

namespace tfmot_ternary {
namespace {

struct Avx2Isa {
  static constexpr int kRows = 6;
  static constexpr int kColumns = 1;
  static constexpr int kNarrow = 2;
  static constexpr int kCodeRows = 2;

  struct Floats {
    __m256 low, high;
  };

  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const float* x) {
    return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const uint16_t* x) {
    const __m128i* from = reinterpret_cast<const __m128i*>(x);
    return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const int8_t* x) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes)))};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE void Store(float* to, Floats x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE void StoreHalf(uint16_t* to, Floats x) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    __m128i* halves = reinterpret_cast<__m128i*>(to);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.low, kNearest));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.high, kNearest));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Zero() {
    return {_mm256_setzero_ps(), _mm256_setzero_ps()};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Broadcast(float x) {
    const __m256 vector = _mm256_set1_ps(x);
    return {vector, vector};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Add(Floats a, Floats b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Mul(Floats a, Floats b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Max(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE __m256 AddPower(__m256 x, __m256 shifted) {
    return _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(x), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats AddPower(Floats x, Floats shifted) {
    return {AddPower(x.low, shifted.low), AddPower(x.high, shifted.high)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats KeepFrom(Floats x, Floats limit, Floats value) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, limit.low, _CMP_NLT_UQ), value.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, limit.high, _CMP_NLT_UQ), value.high)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float Largest(Floats x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float Sum(Floats x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }

  // Two sums for each position, of four positions in a register.
  struct Sums {
    __m256i a, b, c, d;
  };

  static TFMOT_TERNARY_ATTENTION_INLINE Sums ZeroSums() {
    const __m256i zero = _mm256_setzero_si256();
    return {zero, zero, zero, zero};
  }
  // 16-bit products: bytes as they are would overflow in pairs.
  static TFMOT_TERNARY_ATTENTION_INLINE __m256i AddFour(const uint8_t* keys, __m256i codes,
                                                        __m256i sums) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_cvtepu8_epi16(bytes), codes));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE void AddProducts(const uint8_t* keys, const int8_t* codes,
                                                         Sums* sums) {
    int32_t four;
    std::memcpy(&four, codes, sizeof(four));
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
    sums->a = AddFour(keys, wide, sums->a);
    sums->b = AddFour(keys + 16, wide, sums->b);
    sums->c = AddFour(keys + 32, wide, sums->c);
    sums->d = AddFour(keys + 48, wide, sums->d);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE __m256 FinishEight(__m256i a, __m256i b, __m256i add) {
    // Positions 0 1 4 5 2 3 6 7.
    const __m256i mixed = _mm256_hadd_epi32(a, b);
    const __m256i sums = _mm256_permute4x64_epi64(mixed, _MM_SHUFFLE(3, 1, 2, 0));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(sums, add));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Finish(Sums sums, int32_t correction) {
    const __m256i add = _mm256_set1_epi32(correction);
    return {FinishEight(sums.a, sums.b, add), FinishEight(sums.c, sums.d, add)};
  }
};

}  // namespace

extern const AttentionFunctions Avx2Attention;
const AttentionFunctions Avx2Attention = {attention_body::Attend<Avx2Isa>,
                                          attention_body::ToHalf<Avx2Isa>};

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
