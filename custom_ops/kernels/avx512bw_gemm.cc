// AVX-512 BW kernels of the integer product, for CPUs without VNNI: 512-bit vectors, sums of
// products in 16 bits.
#if defined(__x86_64__)

#include <cstring>

#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace avx512bw {

using Vector = __m512i;
constexpr int64_t kVectorBytes = 64;

TFMOT_TERNARY_AVX512_INLINE Vector Load(const void* p) { return _mm512_loadu_si512(p); }
TFMOT_TERNARY_AVX512_INLINE void Store(void* p, Vector value) { _mm512_storeu_si512(p, value); }
TFMOT_TERNARY_AVX512_INLINE Vector LoadPart(const void* p, int64_t count) {
  return avx512::LoadPart(p, count);
}
TFMOT_TERNARY_AVX512_INLINE Vector LoadTable(const uint8_t* table) {
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}
TFMOT_TERNARY_AVX512_INLINE Vector Broadcast4(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, sizeof(four));
  return _mm512_set1_epi32(four);
}

TFMOT_TERNARY_AVX512_INLINE Vector Zero() { return _mm512_setzero_si512(); }
TFMOT_TERNARY_AVX512_INLINE Vector Set8(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
TFMOT_TERNARY_AVX512_INLINE Vector Set32(int32_t x) { return _mm512_set1_epi32(x); }
TFMOT_TERNARY_AVX512_INLINE Vector And(Vector a, Vector b) { return _mm512_and_si512(a, b); }
TFMOT_TERNARY_AVX512_INLINE Vector Add8(Vector a, Vector b) { return _mm512_add_epi8(a, b); }
TFMOT_TERNARY_AVX512_INLINE Vector Sub8(Vector a, Vector b) { return _mm512_sub_epi8(a, b); }
TFMOT_TERNARY_AVX512_INLINE Vector Min8(Vector a, Vector b) { return _mm512_min_epu8(a, b); }
TFMOT_TERNARY_AVX512_INLINE Vector Add16(Vector a, Vector b) { return _mm512_add_epi16(a, b); }
TFMOT_TERNARY_AVX512_INLINE Vector Add32(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
TFMOT_TERNARY_AVX512_INLINE Vector Sub32(Vector a, Vector b) { return _mm512_sub_epi32(a, b); }
template <int n>
TFMOT_TERNARY_AVX512_INLINE Vector ShiftBits16(Vector a) {
  return n == 0 ? a : _mm512_srli_epi16(a, n);
}
template <int n>
TFMOT_TERNARY_AVX512_INLINE Vector Divide16(Vector a) {
  return n == 0 ? a : _mm512_srai_epi16(a, n);
}
template <int n>
TFMOT_TERNARY_AVX512_INLINE Vector Divide32(Vector a) {
  return n == 0 ? a : _mm512_srai_epi32(a, n);
}
TFMOT_TERNARY_AVX512_INLINE Vector LookUp(Vector table, Vector index) {
  return _mm512_shuffle_epi8(table, index);
}
TFMOT_TERNARY_AVX512_INLINE Vector AddPairs16(Vector a) {
  return _mm512_madd_epi16(a, _mm512_set1_epi16(1));
}
TFMOT_TERNARY_AVX512_INLINE void AddScaled(const int32_t* acc, const float* scales, float* sums) {
  const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(Load(acc)), _mm512_loadu_ps(scales));
  _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), product));
}
TFMOT_TERNARY_AVX512_INLINE void HoldInRegister(Vector* value) { avx512::HoldInRegister(value); }

// As avx2::PairDot.
struct PairDot {
  static constexpr bool kWide = false;
  static constexpr int kMaxM = 12;  // 24 accumulators

  static TFMOT_TERNARY_AVX512_INLINE void Add(Vector codes, Vector q, Vector* acc) {
    const Vector pairs = _mm512_maddubs_epi16(codes, q);
    __asm__("vpaddw %1, %0, %0" : "+v"(*acc) : "v"(pairs));
  }
  static TFMOT_TERNARY_AVX512_INLINE Vector Widen(Vector acc) { return AddPairs16(acc); }
};

// As avx2::WideDot.
struct WideDot {
  static constexpr bool kWide = true;
  static constexpr int kMaxM = 8;

  static TFMOT_TERNARY_AVX512_INLINE void Add(Vector codes, Vector q, Vector* acc) {
    const Vector even = _mm512_madd_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0xff)),
                                          _mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8));
    const Vector odd = _mm512_madd_epi16(_mm512_srli_epi16(codes, 8), _mm512_srai_epi16(q, 8));
    *acc = Add32(*acc, Add32(even, odd));
  }
  static TFMOT_TERNARY_AVX512_INLINE Vector Widen(Vector acc) { return acc; }
};

TFMOT_TERNARY_AVX512_INLINE __m128i SumLanes4(Vector a, Vector b, Vector c, Vector d) {
  return avx512::SumLanes4(a, b, c, d);
}

// Loads 4 * dwords bytes, at most 16, of each of 16 rows and turns them: columns[d] holds dword d
// of every row.
template <bool kFull>
TFMOT_TERNARY_AVX512_INLINE void LoadColumns(const uint8_t* const* rows, int64_t offset,
                                             int64_t dwords, Vector* columns) {
  const __mmask8 mask = static_cast<__mmask8>((1 << dwords) - 1);
  const auto load = [&](int r) TFMOT_TERNARY_AVX512 {
    const void* p = rows[r] + offset;
    return kFull ? _mm_loadu_si128(static_cast<const __m128i*>(p)) : _mm_maskz_loadu_epi32(mask, p);
  };
  Vector a[4];
  for (int r = 0; r < 4; ++r) {
    a[r] = _mm512_castsi128_si512(load(r));
    a[r] = _mm512_inserti32x4(a[r], load(r + 4), 1);
    a[r] = _mm512_inserti32x4(a[r], load(r + 8), 2);
    a[r] = _mm512_inserti32x4(a[r], load(r + 12), 3);
  }
  const Vector low01 = _mm512_unpacklo_epi32(a[0], a[1]);
  const Vector high01 = _mm512_unpackhi_epi32(a[0], a[1]);
  const Vector low23 = _mm512_unpacklo_epi32(a[2], a[3]);
  const Vector high23 = _mm512_unpackhi_epi32(a[2], a[3]);
  columns[0] = _mm512_unpacklo_epi64(low01, low23);
  columns[1] = _mm512_unpackhi_epi64(low01, low23);
  columns[2] = _mm512_unpacklo_epi64(high01, high23);
  columns[3] = _mm512_unpackhi_epi64(high01, high23);
}

}  // namespace avx512bw
}  // namespace tfmot_ternary

#define TFMOT_TERNARY_VECTOR_SPACE avx512bw
#define TFMOT_TERNARY_VECTOR TFMOT_TERNARY_AVX512
#define TFMOT_TERNARY_VECTOR_INLINE TFMOT_TERNARY_AVX512_INLINE
#include "custom_ops/kernels/codecs_body.h"
#include "custom_ops/kernels/prefill_body.h"

namespace tfmot_ternary {

TFMOT_TERNARY_DEFINE_GEMM(avx512bw, T2, Avx512Bw, T2Codes, PairDot)
TFMOT_TERNARY_DEFINE_GEMM(avx512bw, T5, Avx512Bw, T5Codes, PairDot)
TFMOT_TERNARY_DEFINE_GEMM(avx512bw, B1, Avx512Bw, B1Codes, PairDot)
TFMOT_TERNARY_DEFINE_GEMM(avx512bw, I8, Avx512Bw, I8Codes, WideDot)
TFMOT_TERNARY_DEFINE_GEMM(avx512bw, I4, Avx512Bw, I4Codes, WideDot)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
