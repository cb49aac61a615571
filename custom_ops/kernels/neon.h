// ARM64 building blocks: packed bytes to one byte per weight, and ways to multiply such bytes.
//
// Nothing here needs more than the NEON of every ARM64 CPU, so that functions of any target inline
// it. SDOT is in neon_dotprod.cc, SMMLA in neon_i8mm.cc.
#ifndef TFMOT_TERNARY_KERNELS_NEON_H_
#define TFMOT_TERNARY_KERNELS_NEON_H_

#include <arm_neon.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "custom_ops/kernels/gemm.h"

#define TFMOT_TERNARY_NEON_INLINE inline __attribute__((always_inline))

namespace tfmot_ternary {
namespace neon {

constexpr int kVectorBytes = 16;

// A codec makes a Block of 16 packed bytes. Digits<f>(block) are signed bytes for field f, of which
// the weights are kFactor * digit - kOffset, and kOffset is 0 or DigitOffset(kFormat);
// Field<f>(block) is a multiple of them, 2^Shift(f), that has an accumulator, Accumulator(f), of
// its own. Packed bytes kNeutral have digits 0.

// Digits 0 to 2.
struct T2Codec {
  static constexpr Format kFormat = Format::kT2;
  static constexpr int kFields = 4;
  static constexpr int kFactor = 1;
  static constexpr int kOffset = 1;
  static constexpr uint8_t kNeutral = 0;
  static constexpr int kLargestDigit = 2;
  static constexpr bool kMasks = false;
  using Block = uint8x16_t;

  static TFMOT_TERNARY_NEON_INLINE Block MakeBlock(uint8x16_t bytes) { return bytes; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Digits(const Block& block) {
    if constexpr (f == 3) {
      return vreinterpretq_s8_u8(vshrq_n_u8(block, 6));
    } else {
      const uint8x16_t shifted = f == 0 ? block : vshrq_n_u8(block, f == 0 ? 1 : 2 * f);
      return vreinterpretq_s8_u8(vandq_u8(shifted, vdupq_n_u8(3)));
    }
  }
  static constexpr int kAccumulators = 1;
  static constexpr int Accumulator(int /*f*/) { return 0; }
  static constexpr int Shift(int /*f*/) { return 0; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Field(const Block& block) {
    return Digits<f>(block);
  }
};

// t2 with fields that are masked and not shifted: 4^f times the digit. The top field would not be a
// multiple in a signed byte (2 * 64 is -128): it is shifted, which takes as many instructions.
struct T2MaskedCodec : T2Codec {
  static constexpr int kAccumulators = 3;
  static constexpr int Accumulator(int f) { return f % 3; }
  static constexpr int Shift(int f) { return f % 3 * 2; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Field(const Block& block) {
    if constexpr (f == 3) return Digits<3>(block);
    return vreinterpretq_s8_u8(vandq_u8(block, vdupq_n_u8(static_cast<uint8_t>(3 << (2 * f % 8)))));
  }
};

// Digits -1 to 1. byte = 27 * upper + lower: upper, 0 to 9, holds digits 3 and 4 and lower, 0 to
// 26, digits 0 to 2, each of which is one table lookup.
struct T5Codec {
  static constexpr Format kFormat = Format::kT5;
  static constexpr int kFields = 5;
  static constexpr int kFactor = 1;
  static constexpr int kOffset = 0;
  static constexpr uint8_t kNeutral = 1 + 3 + 9 + 27 + 81;
  static constexpr int kLargestDigit = 1;
  static constexpr bool kMasks = false;
  struct Block {
    uint8x16_t lower, upper;
  };

  static TFMOT_TERNARY_NEON_INLINE Block MakeBlock(uint8x16_t bytes) {
    // x / 27 = x * 19 / 512 for x below 256; the upper bytes of the products are x * 19 / 256.
    const uint8x16_t nineteen = vdupq_n_u8(19);
    const uint16x8_t low = vmull_u8(vget_low_u8(bytes), vget_low_u8(nineteen));
    const uint16x8_t high = vmull_high_u8(bytes, nineteen);
    const uint8x16_t tops = vuzp2q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
    const uint8x16_t upper = vshrq_n_u8(tops, 1);
    return {vmlsq_u8(bytes, upper, vdupq_n_u8(27)), upper};
  }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Digits(const Block& block) {
    if constexpr (f == 0) {
      constexpr int8x16_t kFront = {-1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1};
      constexpr int8x16_t kBack = {0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, 0, 0, 0, 0, 0};
      return vqtbl2q_s8({{kFront, kBack}}, block.lower);
    } else if constexpr (f == 1) {
      constexpr int8x16_t kFront = {-1, -1, -1, 0, 0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1};
      constexpr int8x16_t kBack = {1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0};
      return vqtbl2q_s8({{kFront, kBack}}, block.lower);
    } else if constexpr (f == 2) {
      constexpr int8x16_t kFront = {-1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0};
      constexpr int8x16_t kBack = {0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0};
      return vqtbl2q_s8({{kFront, kBack}}, block.lower);
    } else if constexpr (f == 3) {  // 9: bytes above 242, which hold no code, as UnpackRow has them
      constexpr int8x16_t kTable = {-1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 0, 0, 0, 0, 0};
      return vqtbl1q_s8(kTable, block.upper);
    } else {
      constexpr int8x16_t kTable = {-1, -1, -1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0};
      return vqtbl1q_s8(kTable, block.upper);
    }
  }
  static constexpr int kAccumulators = 2;  // so that fewer products wait for the one before
  static constexpr int Accumulator(int f) { return f % 2; }
  static constexpr int Shift(int /*f*/) { return 0; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Field(const Block& block) {
    return Digits<f>(block);
  }
};

// Digits 0 and -1: CMTST makes them in one instruction.
struct B1Codec {
  static constexpr Format kFormat = Format::kB1;
  static constexpr int kFields = 8;
  static constexpr int kFactor = -2;
  static constexpr int kOffset = 1;
  static constexpr uint8_t kNeutral = 0;
  static constexpr int kLargestDigit = 1;
  static constexpr bool kMasks = true;
  using Block = uint8x16_t;

  static TFMOT_TERNARY_NEON_INLINE Block MakeBlock(uint8x16_t bytes) { return bytes; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Digits(const Block& block) {
    const uint8x16_t mask = vtstq_u8(block, vdupq_n_u8(static_cast<uint8_t>(1 << f)));
    // Or gcc 12 makes AND, CMEQ and BIC of CMTST and an AND with q.
    __asm__ volatile("" : : "w"(mask));
    return vreinterpretq_s8_u8(mask);
  }
  static constexpr int kAccumulators = 2;
  static constexpr int Accumulator(int f) { return f % 2; }
  static constexpr int Shift(int /*f*/) { return 0; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Field(const Block& block) {
    return Digits<f>(block);
  }
};

// Digits -128 to 127.
struct I8Codec {
  static constexpr Format kFormat = Format::kI8;
  static constexpr int kFields = 1;
  static constexpr int kFactor = 1;
  static constexpr int kOffset = 0;
  static constexpr uint8_t kNeutral = 128;
  static constexpr int kLargestDigit = 128;
  static constexpr bool kMasks = false;
  using Block = uint8x16_t;

  static TFMOT_TERNARY_NEON_INLINE Block MakeBlock(uint8x16_t bytes) { return bytes; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Digits(const Block& block) {
    return vreinterpretq_s8_u8(veorq_u8(block, vdupq_n_u8(128)));
  }
  static constexpr int kAccumulators = 1;
  static constexpr int Accumulator(int /*f*/) { return 0; }
  static constexpr int Shift(int /*f*/) { return 0; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Field(const Block& block) {
    return Digits<f>(block);
  }
};

// Digits 0 to 15.
struct I4Codec {
  static constexpr Format kFormat = Format::kI4;
  static constexpr int kFields = 2;
  static constexpr int kFactor = 1;
  static constexpr int kOffset = 8;
  static constexpr uint8_t kNeutral = 0;
  static constexpr int kLargestDigit = 15;
  static constexpr bool kMasks = false;
  using Block = uint8x16_t;

  static TFMOT_TERNARY_NEON_INLINE Block MakeBlock(uint8x16_t bytes) { return bytes; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Digits(const Block& block) {
    if constexpr (f == 1) return vreinterpretq_s8_u8(vshrq_n_u8(block, 4));
    return vreinterpretq_s8_u8(vandq_u8(block, vdupq_n_u8(15)));
  }
  static constexpr int kAccumulators = 2;
  static constexpr int Accumulator(int f) { return f; }
  static constexpr int Shift(int /*f*/) { return 0; }
  template <int f>
  static TFMOT_TERNARY_NEON_INLINE int8x16_t Field(const Block& block) {
    return Digits<f>(block);
  }
};

// Products of bytes in lanes of 16 bits, for CPUs without SDOT.
struct Widening {
  static constexpr bool kWide = false;
  using Lanes = int16x8_t;

  static TFMOT_TERNARY_NEON_INLINE Lanes Zero() { return vdupq_n_s16(0); }
  // Digits 0 and -1 select q instead: two instructions, not on the multiplier, against two on it.
  // The sign is the other one then; Wide turns it back.
  template <class Codec>
  static TFMOT_TERNARY_NEON_INLINE void Add(int8x16_t digits, int8x16_t q, Lanes* lanes) {
    if constexpr (Codec::kMasks) {
      *lanes = vpadalq_s8(*lanes, vandq_s8(digits, q));
    } else {
      *lanes = vmlal_s8(*lanes, vget_low_s8(digits), vget_low_s8(q));
      *lanes = vmlal_high_s8(*lanes, digits, q);
    }
  }
  template <class Codec>
  static TFMOT_TERNARY_NEON_INLINE int32x4_t Wide(Lanes lanes) {
    const int32x4_t wide = vpaddlq_s16(lanes);
    return Codec::kMasks ? vnegq_s32(wide) : wide;
  }
  template <class Codec>
  static TFMOT_TERNARY_NEON_INLINE void AddWide(Lanes lanes, int32x4_t* sum) {
    *sum = Codec::kMasks ? vsubq_s32(*sum, vpaddlq_s16(lanes)) : vpadalq_s16(*sum, lanes);
  }
  // Vectors of 16 digits whose products with -128 a lane holds.
  template <class Codec>
  static constexpr int kVectors = 32767 / (2 * 128 * Codec::kLargestDigit);
};

// The same in lanes of 32 bits, for digits of which 16 hold one product only.
struct WideningPairs {
  static constexpr bool kWide = true;
  using Lanes = int32x4_t;

  static TFMOT_TERNARY_NEON_INLINE Lanes Zero() { return vdupq_n_s32(0); }
  template <class Codec>
  static TFMOT_TERNARY_NEON_INLINE void Add(int8x16_t digits, int8x16_t q, Lanes* lanes) {
    *lanes = vpadalq_s16(*lanes, vmull_s8(vget_low_s8(digits), vget_low_s8(q)));
    *lanes = vpadalq_s16(*lanes, vmull_high_s8(digits, q));
  }
  template <class Codec>
  static TFMOT_TERNARY_NEON_INLINE int32x4_t Wide(Lanes lanes) {
    return lanes;
  }
  template <class Codec>
  static constexpr int kVectors = 4096;  // any number: MaxK bounds the sums
};

// The sums of the lanes of four vectors.
TFMOT_TERNARY_NEON_INLINE int32x4_t SumLanes4(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
  return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

// The sums of weight * q, from those of digit * q and of q.
template <class Codec>
TFMOT_TERNARY_NEON_INLINE int32x4_t SumWeights(int32x4_t digits, int32x4_t q) {
  if constexpr (Codec::kFactor == 1) return Codec::kOffset == 0 ? digits : vsubq_s32(digits, q);
  return vsubq_s32(vmulq_n_s32(digits, Codec::kFactor), q);
}

// Bytes that DecodeShort touches, for any format.
constexpr int64_t kShortBytes = kMaxBlockWeights + kVectorBytes;

// The last block of a row, of 0 < size < 64 bytes: digits in the order of the row.
template <class Codec, int f = 0>
TFMOT_TERNARY_NEON_INLINE void DecodeFields(const uint8_t* block, int64_t size, int8_t* out) {
  if constexpr (f < Codec::kFields) {
    // What a vector has beyond its field is overwritten by the next one.
    for (int64_t j = 0; j < size; j += kVectorBytes) {
      const typename Codec::Block made = Codec::MakeBlock(vld1q_u8(block + j));
      vst1q_s8(out + f * size + j, Codec::template Digits<f>(made));
    }
    DecodeFields<Codec, f + 1>(block, size, out);
  }
}

// block: 64 bytes, of which `size` are copied from the row; the others are neutral.
template <class Codec>
TFMOT_TERNARY_NEON_INLINE void CopyShort(const uint8_t* row, int64_t size, uint8_t* block) {
  std::memset(block, Codec::kNeutral, kBlockBytes);
  std::memcpy(block, row, size);
}

template <class Codec>
TFMOT_TERNARY_NEON_INLINE void DecodeShort(const uint8_t* row, int64_t size, int8_t* out) {
  uint8_t block[kBlockBytes];
  CopyShort<Codec>(row, size, block);
  DecodeFields<Codec>(block, size, out);
}

// `R` rows of the tile from `first` on; where the tile ends, its last row again.
template <int R>
TFMOT_TERNARY_NEON_INLINE void PointToRows(const GemmTile& tile, int first, const uint8_t** rows) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    rows[r] = tile.rows + std::min(first + r, tile.row_count - 1) * tile.row_bytes;
  }
}

}  // namespace neon
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_NEON_H_
