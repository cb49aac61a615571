// 256-bit vectors for the bodies of the kernels (codecs_body.h, decode_body.h, prefill_body.h), and
// the two ways to multiply bytes: AVX2 and AVX-VNNI.
#ifndef TFMOT_TERNARY_KERNELS_AVX2_H_
#define TFMOT_TERNARY_KERNELS_AVX2_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "custom_ops/kernels/gemm.h"

#define TFMOT_TERNARY_AVX2 __attribute__((target("avx2")))
#define TFMOT_TERNARY_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))

namespace tfmot_ternary {
namespace avx2 {

using Vector = __m256i;
constexpr int64_t kVectorBytes = 32;

TFMOT_TERNARY_AVX2_INLINE Vector Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const Vector*>(p));
}
TFMOT_TERNARY_AVX2_INLINE void Store(void* p, Vector value) {
  _mm256_storeu_si256(static_cast<Vector*>(p), value);
}
// The first `count` bytes, a multiple of 4, all where that is above 32, none where it is negative;
// zero beyond. Reads no other byte.
TFMOT_TERNARY_AVX2_INLINE Vector LoadPart(const void* p, int64_t count) {
  const Vector lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const Vector mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count / 4)), lanes);
  return _mm256_maskload_epi32(static_cast<const int*>(p), mask);
}
TFMOT_TERNARY_AVX2_INLINE Vector LoadTable(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
}
TFMOT_TERNARY_AVX2_INLINE Vector Broadcast4(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, sizeof(four));
  return _mm256_set1_epi32(four);
}

TFMOT_TERNARY_AVX2_INLINE Vector Zero() { return _mm256_setzero_si256(); }
TFMOT_TERNARY_AVX2_INLINE Vector Set8(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
TFMOT_TERNARY_AVX2_INLINE Vector Set32(int32_t x) { return _mm256_set1_epi32(x); }
TFMOT_TERNARY_AVX2_INLINE Vector And(Vector a, Vector b) { return _mm256_and_si256(a, b); }
TFMOT_TERNARY_AVX2_INLINE Vector Add8(Vector a, Vector b) { return _mm256_add_epi8(a, b); }
TFMOT_TERNARY_AVX2_INLINE Vector Sub8(Vector a, Vector b) { return _mm256_sub_epi8(a, b); }
TFMOT_TERNARY_AVX2_INLINE Vector Min8(Vector a, Vector b) { return _mm256_min_epu8(a, b); }
TFMOT_TERNARY_AVX2_INLINE Vector Add16(Vector a, Vector b) { return _mm256_add_epi16(a, b); }
TFMOT_TERNARY_AVX2_INLINE Vector Add32(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
TFMOT_TERNARY_AVX2_INLINE Vector Sub32(Vector a, Vector b) { return _mm256_sub_epi32(a, b); }
template <int n>
TFMOT_TERNARY_AVX2_INLINE Vector ShiftBits16(Vector a) {
  return n == 0 ? a : _mm256_srli_epi16(a, n);
}
template <int n>
TFMOT_TERNARY_AVX2_INLINE Vector Divide16(Vector a) {  // by 2^n, signed
  return n == 0 ? a : _mm256_srai_epi16(a, n);
}
template <int n>
TFMOT_TERNARY_AVX2_INLINE Vector Divide32(Vector a) {
  return n == 0 ? a : _mm256_srai_epi32(a, n);
}
// Of 16 bytes, those at `index` below 16.
TFMOT_TERNARY_AVX2_INLINE Vector LookUp(Vector table, Vector index) {
  return _mm256_shuffle_epi8(table, index);
}
TFMOT_TERNARY_AVX2_INLINE Vector AddPairs16(Vector a) {
  return _mm256_madd_epi16(a, _mm256_set1_epi16(1));
}

// sums += float(acc) * scales for one vector of them, without contraction.
TFMOT_TERNARY_AVX2_INLINE void AddScaled(const int32_t* acc, const float* scales, float* sums) {
  const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(Load(acc)), _mm256_loadu_ps(scales));
  _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_loadu_ps(sums), product));
}

// Keeps gcc 12 from loading the value again for every mask that is taken of it.
TFMOT_TERNARY_AVX2_INLINE void HoldInRegister(Vector* value) { __asm__("" : "+x"(*value)); }

// AVX2: sums of products in 16 bits; vpmaddubsw adds two unsigned codes times signed bytes. Inline
// assembly keeps the accumulators in registers, where gcc 12 would collect products and spill.
struct PairDot {
  static constexpr bool kWide = false;
  static constexpr int kMaxM = 4;  // rows of x that prefill takes at once: 8 accumulators

  static TFMOT_TERNARY_AVX2_INLINE void Add(Vector codes, Vector q, Vector* acc) {
    const Vector pairs = _mm256_maddubs_epi16(codes, q);
    __asm__("vpaddw %1, %0, %0" : "+x"(*acc) : "x"(pairs));
  }
  static TFMOT_TERNARY_AVX2_INLINE Vector Widen(Vector acc) { return AddPairs16(acc); }
};

// AVX-VNNI: in 32 bits. Inline assembly because gcc 12 copies the accumulator around the intrinsic,
// and so that the same bodies serve both: only the AVX-VNNI lines of the table ask for it.
struct VnniDot {
  static constexpr bool kWide = true;
  static constexpr int kMaxM = 6;  // 12 accumulators

  static TFMOT_TERNARY_AVX2_INLINE void Add(Vector codes, Vector q, Vector* acc) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(*acc) : "x"(codes), "x"(q));
  }
  static TFMOT_TERNARY_AVX2_INLINE Vector Widen(Vector acc) { return acc; }
};

// AVX2 for i8 and i4: vpmaddubsw would saturate, so bytes are widened to 16 bits first, the even
// and the odd ones of each lane apart: all four products stay in it.
struct WideDot {
  static constexpr bool kWide = true;
  static constexpr int kMaxM = 3;

  static TFMOT_TERNARY_AVX2_INLINE void Add(Vector codes, Vector q, Vector* acc) {
    const Vector even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(0xff)),
                                          _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8));
    const Vector odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(q, 8));
    *acc = Add32(*acc, Add32(even, odd));
  }
  static TFMOT_TERNARY_AVX2_INLINE Vector Widen(Vector acc) { return acc; }
};

// Sums of the 8 lanes of four vectors, in order.
TFMOT_TERNARY_AVX2_INLINE __m128i SumLanes4(Vector a, Vector b, Vector c, Vector d) {
  const Vector ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  const Vector cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
  const Vector abcd =
      _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
  return _mm_add_epi32(_mm256_castsi256_si128(abcd), _mm256_extracti128_si256(abcd, 1));
}

// Loads 4 * dwords bytes, at most 16, of each of 8 rows and turns them: columns[d] holds dword d of
// every row.
template <bool kFull>
TFMOT_TERNARY_AVX2_INLINE void LoadColumns(const uint8_t* const* rows, int64_t offset,
                                           int64_t dwords, Vector* columns) {
  const __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(dwords)),  //
                                       _mm_setr_epi32(0, 1, 2, 3));
  const auto load = [&](int r) TFMOT_TERNARY_AVX2 {
    const void* p = rows[r] + offset;
    return kFull ? _mm_loadu_si128(static_cast<const __m128i*>(p))
                 : _mm_maskload_epi32(static_cast<const int*>(p), mask);
  };
  Vector a[4];
  for (int r = 0; r < 4; ++r) {
    a[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(load(r)), load(r + 4), 1);
  }
  const Vector low01 = _mm256_unpacklo_epi32(a[0], a[1]);
  const Vector high01 = _mm256_unpackhi_epi32(a[0], a[1]);
  const Vector low23 = _mm256_unpacklo_epi32(a[2], a[3]);
  const Vector high23 = _mm256_unpackhi_epi32(a[2], a[3]);
  columns[0] = _mm256_unpacklo_epi64(low01, low23);
  columns[1] = _mm256_unpackhi_epi64(low01, low23);
  columns[2] = _mm256_unpacklo_epi64(high01, high23);
  columns[3] = _mm256_unpackhi_epi64(high01, high23);
}

}  // namespace avx2
}  // namespace tfmot_ternary

#define TFMOT_TERNARY_VECTOR_SPACE avx2
#define TFMOT_TERNARY_VECTOR TFMOT_TERNARY_AVX2
#define TFMOT_TERNARY_VECTOR_INLINE TFMOT_TERNARY_AVX2_INLINE
#include "custom_ops/kernels/codecs_body.h"

#endif  // TFMOT_TERNARY_KERNELS_AVX2_H_
