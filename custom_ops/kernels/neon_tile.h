// ARM64: a tile of rows of W, unpacked for the prefill kernels.
#ifndef TFMOT_TERNARY_KERNELS_NEON_TILE_H_
#define TFMOT_TERNARY_KERNELS_NEON_TILE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/neon.h"

namespace tfmot_ternary {
namespace neon {

// Weights that a tile has for each row: whole vectors, and what the fields of a short block write.
inline int64_t TileWeights(int64_t k) {
  return (k + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
}

// The order [k / kStep][kTileRows][kStep]: a vector holds kStep weights of each of 16 / kStep rows.
// Weight 0 of `row` begins at TileOffset, those of the next steps kTileRows * kStep bytes apart.
template <int kStep>
TFMOT_TERNARY_NEON_INLINE int64_t TileOffset(int64_t weight, int row) {
  return weight * kTileRows + row * kStep;
}

// 16 / kStep rows of 16 bytes -> vectors of kStep bytes of each row.
template <int kStep>
TFMOT_TERNARY_NEON_INLINE void Interleave(uint8x16_t* rows) {
  if constexpr (kStep == 8) {
    const uint64x2_t a = vreinterpretq_u64_u8(rows[0]);
    const uint64x2_t b = vreinterpretq_u64_u8(rows[1]);
    rows[0] = vreinterpretq_u8_u64(vzip1q_u64(a, b));
    rows[1] = vreinterpretq_u8_u64(vzip2q_u64(a, b));
  }
  if constexpr (kStep == 4) {
    const uint32x4_t a = vreinterpretq_u32_u8(rows[0]);
    const uint32x4_t b = vreinterpretq_u32_u8(rows[1]);
    const uint32x4_t c = vreinterpretq_u32_u8(rows[2]);
    const uint32x4_t d = vreinterpretq_u32_u8(rows[3]);
    const uint64x2_t ab_even = vreinterpretq_u64_u32(vtrn1q_u32(a, b));  // columns 0 and 2
    const uint64x2_t ab_odd = vreinterpretq_u64_u32(vtrn2q_u32(a, b));
    const uint64x2_t cd_even = vreinterpretq_u64_u32(vtrn1q_u32(c, d));
    const uint64x2_t cd_odd = vreinterpretq_u64_u32(vtrn2q_u32(c, d));
    rows[0] = vreinterpretq_u8_u64(vtrn1q_u64(ab_even, cd_even));
    rows[1] = vreinterpretq_u8_u64(vtrn1q_u64(ab_odd, cd_odd));
    rows[2] = vreinterpretq_u8_u64(vtrn2q_u64(ab_even, cd_even));
    rows[3] = vreinterpretq_u8_u64(vtrn2q_u64(ab_odd, cd_odd));
  }
}

template <class Codec, int f>
TFMOT_TERNARY_NEON_INLINE void StoreFields(const typename Codec::Block& block, int8_t* out) {
  if constexpr (f < Codec::kFields) {
    vst1q_s8(out + f * kBlockBytes * kTileRows, Codec::template Digits<f>(block));
    StoreFields<Codec, f + 1>(block, out);
  }
}

// Writes the digits of the tile's rows, up to the next multiple of 16 / kStep; what follows them up
// to TileWeights is 0 or any digit, for q is zero there. Packed bytes are interleaved before they
// are decoded: a quarter to an eighth of what weights would be.
template <class Codec, int kStep>
void LoadTile(const GemmTile& tile) {
  constexpr int kRows = kVectorBytes / kStep;
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  int8_t* out = reinterpret_cast<int8_t*>(tile.scratch);
  for (int first = 0; first < tile.row_count; first += kRows) {
    const uint8_t* rows[kRows];
    PointToRows<kRows>(tile, first, rows);
    int64_t begin = 0;
    for (; begin + kBlockWeights <= tile.k; begin += kBlockWeights) {
      for (int64_t j = 0; j < kBlockBytes; j += kVectorBytes) {
        uint8x16_t bytes[kRows];
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) bytes[r] = vld1q_u8(rows[r] + begin / Codec::kFields + j);
        Interleave<kStep>(bytes);
#pragma GCC unroll 4
        for (int c = 0; c < kRows; ++c) {
          StoreFields<Codec, 0>(Codec::MakeBlock(bytes[c]),
                                out + TileOffset<kStep>(begin + j + c * kStep, first));
        }
      }
    }
    const int64_t rest = tile.k - begin;
    if (rest == 0) continue;
    const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      int8_t digits[kShortBytes];
      DecodeShort<Codec>(rows[r] + begin / Codec::kFields, size, digits);
      for (int64_t j = 0; j < rest; j += kStep) {
        std::memcpy(out + TileOffset<kStep>(begin + j, first + r), digits + j, kStep);
      }
    }
  }
}

}  // namespace neon
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_NEON_TILE_H_
