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
  const __m512i one = _mm512_set1_epi8(1);
  for (int64_t begin = 0; begin < k; begin += kPieceWeights<Codec>) {
    const int64_t count = std::min(kPieceWeights<Codec>, k - begin);
    DecodePiece<Codec>(row, count, codes);
    row += kPieceWeights<Codec> / Codec::kFields;
    for (int64_t i = 0; i < count; i += 64) {
      const __m512i weights = _mm512_sub_epi8(Load(codes + i), one);
      const __mmask64 mask = count - i >= 64 ? ~uint64_t{0} : ~uint64_t{0} >> (64 - (count - i));
      _mm512_mask_storeu_epi8(out + begin + i, mask, weights);
    }
  }
}

TFMOT_TERNARY_AVX512 void Transpose(const float* scales, int rows, int64_t groups, float* out) {
  for (int first = 0; first < kTileRows; first += 16) {
    for (int64_t g = 0; g < groups; g += 16) {
      const int count = static_cast<int>(std::min<int64_t>(16, groups - g));
      const __mmask16 mask = static_cast<__mmask16>(0xffff >> (16 - count));
      __m512i from[16], columns[16];
      for (int r = 0; r < 16; ++r) {
        const int row = std::min(first + r, rows - 1);
        from[r] = _mm512_maskz_loadu_epi32(mask, scales + row * groups + g);
      }
      Transpose16(from, columns);
      float* to = out + g * kTileRows + first;
      if (count == 16) {
        for (int c = 0; c < 16; ++c) _mm512_storeu_si512(to + c * kTileRows, columns[c]);
      } else {
        for (int c = 0; c < count; ++c) _mm512_storeu_si512(to + c * kTileRows, columns[c]);
      }
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

void T2UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::T2Codec>(row, k, out);
}
void T5UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::T5Codec>(row, k, out);
}
void B1UnpackAvx512(const uint8_t* row, int64_t k, int8_t* out) {
  avx512::UnpackCodes<avx512::B1Codec>(row, k, out);
}

TFMOT_TERNARY_DEFINE_ROW_FUNCTIONS(Avx512Row,
                                   __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))),
                                   avx512::Transpose)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
