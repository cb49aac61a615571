// ARM64: single rows.
#if defined(__aarch64__)

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/neon.h"
#include "custom_ops/kernels/row_body.h"

namespace tfmot_ternary {
namespace neon {
namespace {

// Digits to weights.
template <class Codec>
TFMOT_TERNARY_NEON_INLINE int8x16_t Weights(int8x16_t digits) {
  if constexpr (Codec::kMasks) return vornq_s8(vdupq_n_s8(1), digits);  // -1 is 1, 0 is -1
  if constexpr (Codec::kOffset == 0) return digits;
  return vsubq_s8(digits, vdupq_n_s8(Codec::kOffset));
}

template <class Codec, int f>
TFMOT_TERNARY_NEON_INLINE void StoreWeights(const typename Codec::Block& block, int8_t* out) {
  if constexpr (f < Codec::kFields) {
    vst1q_s8(out + f * kBlockBytes, Weights<Codec>(Codec::template Digits<f>(block)));
    StoreWeights<Codec, f + 1>(block, out);
  }
}

template <class Codec>
void UnpackCodes(const uint8_t* row, int64_t k, int8_t* out) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  for (; k >= kBlockWeights; k -= kBlockWeights) {
    for (int64_t j = 0; j < kBlockBytes; j += kVectorBytes) {
      StoreWeights<Codec, 0>(Codec::MakeBlock(vld1q_u8(row + j)), out + j);
    }
    row += kBlockBytes;
    out += kBlockWeights;
  }
  if (k == 0) return;
  int8_t digits[kShortBytes];
  DecodeShort<Codec>(row, ShortBlockBytes(Codec::kFormat, k), digits);
  for (int64_t j = 0; j < k; j += kVectorBytes) {
    vst1q_s8(digits + j, Weights<Codec>(vld1q_s8(digits + j)));
  }
  std::memcpy(out, digits, k);
}

// Four groups of four rows at a time.
void Transpose(const float* scales, int rows, int64_t groups, float* out) {
  for (int first = 0; first < kTileRows; first += 4) {
    const float* from[4];
    for (int r = 0; r < 4; ++r) from[r] = scales + std::min(first + r, rows - 1) * groups;
    float* to = out + first;
    int64_t g = 0;
    for (; g + 4 <= groups; g += 4) {
      const float32x4_t a = vld1q_f32(from[0] + g);
      const float32x4_t b = vld1q_f32(from[1] + g);
      const float32x4_t c = vld1q_f32(from[2] + g);
      const float32x4_t d = vld1q_f32(from[3] + g);
      const float64x2_t ab_even = vreinterpretq_f64_f32(vtrn1q_f32(a, b));  // columns 0 and 2
      const float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b));
      const float64x2_t cd_even = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
      const float64x2_t cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
      vst1q_f32(to, vreinterpretq_f32_f64(vtrn1q_f64(ab_even, cd_even)));
      vst1q_f32(to + kTileRows, vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd)));
      vst1q_f32(to + 2 * kTileRows, vreinterpretq_f32_f64(vtrn2q_f64(ab_even, cd_even)));
      vst1q_f32(to + 3 * kTileRows, vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd)));
      to += 4 * kTileRows;
    }
    for (; g < groups; ++g, to += kTileRows) {
      for (int r = 0; r < 4; ++r) to[r] = from[r][g];
    }
  }
}

}  // namespace
}  // namespace neon

void T2UnpackNeon(const uint8_t* row, int64_t k, int8_t* out);
void T5UnpackNeon(const uint8_t* row, int64_t k, int8_t* out);
void B1UnpackNeon(const uint8_t* row, int64_t k, int8_t* out);
void I8UnpackNeon(const uint8_t* row, int64_t k, int8_t* out);
void I4UnpackNeon(const uint8_t* row, int64_t k, int8_t* out);

void T2UnpackNeon(const uint8_t* row, int64_t k, int8_t* out) {
  neon::UnpackCodes<neon::T2Codec>(row, k, out);
}
void T5UnpackNeon(const uint8_t* row, int64_t k, int8_t* out) {
  neon::UnpackCodes<neon::T5Codec>(row, k, out);
}
void B1UnpackNeon(const uint8_t* row, int64_t k, int8_t* out) {
  neon::UnpackCodes<neon::B1Codec>(row, k, out);
}
void I8UnpackNeon(const uint8_t* row, int64_t k, int8_t* out) {
  neon::UnpackCodes<neon::I8Codec>(row, k, out);
}
void I4UnpackNeon(const uint8_t* row, int64_t k, int8_t* out) {
  neon::UnpackCodes<neon::I4Codec>(row, k, out);
}

TFMOT_TERNARY_DEFINE_ROW_FUNCTIONS(NeonRow, , neon::Transpose)

}  // namespace tfmot_ternary

#endif  // defined(__aarch64__)
