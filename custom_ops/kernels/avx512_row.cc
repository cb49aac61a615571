// AVX-512: single rows, and the table of base-3 digits.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/avx512.h"
#include "custom_ops/kernels/row_body.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

constexpr uint8_t Pairs(int value) {
  // Values above 80 stem from bytes that hold no code; their digits are those of UnpackRow.
  return static_cast<uint8_t>(value % 3 | value / 3 % 3 << 2 | value / 9 % 3 << 4 |
                              value / 27 % 3 << 6);
}

template <class Codec>
TFMOT_TERNARY_AVX512 void UnpackCodes(const uint8_t* row, int64_t k, int8_t* out) {
  alignas(64) uint8_t codes[kDecodedStride];
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(DigitOffset(Codec::kFormat)));
  for (int64_t begin = 0; begin < k; begin += kPieceWeights<Codec>) {
    const int64_t count = std::min(kPieceWeights<Codec>, k - begin);
    DecodePiece<Codec>(row, count, codes);
    row += kPieceWeights<Codec> / Codec::kFields;
    for (int64_t i = 0; i < count; i += 64) {
      const __m512i weights = _mm512_sub_epi8(Load(codes + i), offset);
      const __mmask64 mask = count - i >= 64 ? ~uint64_t{0} : ~uint64_t{0} >> (64 - (count - i));
      _mm512_mask_storeu_epi8(out + begin + i, mask, weights);
    }
  }
}

// Four values of each of four rows; inserting from memory needs no shuffle.
TFMOT_TERNARY_AVX512_INLINE __m512 LoadScales(const float* from, int64_t stride) {
  const __m512 a = _mm512_castps128_ps512(_mm_loadu_ps(from));
  const __m512 ab = _mm512_insertf32x4(a, _mm_loadu_ps(from + stride), 1);
  const __m512 abc = _mm512_insertf32x4(ab, _mm_loadu_ps(from + 2 * stride), 2);
  return _mm512_insertf32x4(abc, _mm_loadu_ps(from + 3 * stride), 3);
}

TFMOT_TERNARY_AVX512 void Transpose(const float* scales, int rows, int64_t groups, float* out) {
  if (rows < kTileRows || groups < 4) {
    row_body::Transpose(scales, rows, groups, out);
    return;
  }
  for (int first = 0; first < kTileRows; first += 16) {
    for (int64_t begin = 0; begin < groups; begin += 4) {
      const int64_t g = std::min(begin, groups - 4);
      // Row 4 j + s lies in part j of vector s.
      const float* from = scales + first * groups + g;
      const __m512 a = LoadScales(from, 4 * groups);
      const __m512 b = LoadScales(from + groups, 4 * groups);
      const __m512 c = LoadScales(from + 2 * groups, 4 * groups);
      const __m512 d = LoadScales(from + 3 * groups, 4 * groups);
      const __m512d low_ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
      const __m512d high_ab = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
      const __m512d low_cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
      const __m512d high_cd = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
      float* to = out + g * kTileRows + first;
      _mm512_storeu_pd(to, _mm512_unpacklo_pd(low_ab, low_cd));
      _mm512_storeu_pd(to + kTileRows, _mm512_unpackhi_pd(low_ab, low_cd));
      _mm512_storeu_pd(to + 2 * kTileRows, _mm512_unpacklo_pd(high_ab, high_cd));
      _mm512_storeu_pd(to + 3 * kTileRows, _mm512_unpackhi_pd(high_ab, high_cd));
    }
  }
}

}  // namespace

#define TFMOT_TERNARY_PAIRS_4(v) Pairs(v), Pairs(v + 1), Pairs(v + 2), Pairs(v + 3)
#define TFMOT_TERNARY_PAIRS_16(v)                                                       \
  TFMOT_TERNARY_PAIRS_4(v), TFMOT_TERNARY_PAIRS_4(v + 4), TFMOT_TERNARY_PAIRS_4(v + 8), \
      TFMOT_TERNARY_PAIRS_4(v + 12)
alignas(64) const uint8_t T5Codec::kPairs[128] = {
    TFMOT_TERNARY_PAIRS_16(0),  TFMOT_TERNARY_PAIRS_16(16), TFMOT_TERNARY_PAIRS_16(32),
    TFMOT_TERNARY_PAIRS_16(48), TFMOT_TERNARY_PAIRS_16(64), TFMOT_TERNARY_PAIRS_16(80),
    TFMOT_TERNARY_PAIRS_16(96), TFMOT_TERNARY_PAIRS_16(112)};
#undef TFMOT_TERNARY_PAIRS_16
#undef TFMOT_TERNARY_PAIRS_4

}  // namespace avx512

void T2UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out);
void T5UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out);
void B1UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out);
void I8UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out);
void I4UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out);

void T2UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::T2Codec>(row, k, out);
}
void T5UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::T5Codec>(row, k, out);
}
void B1UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::B1Codec>(row, k, out);
}
void I8UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::I8Codec>(row, k, out);
}
void I4UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::I4Codec>(row, k, out);
}

TFMOT_TERNARY_DEFINE_ROW_FUNCTIONS(Avx512Row,
                                   __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))),
                                   avx512::Transpose)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
