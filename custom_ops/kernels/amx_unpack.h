// Packed rows of W as tile registers take them: 16 rows in the order [k / 4][16][4], weights as
// they are.
#ifndef TFMOT_TERNARY_KERNELS_AMX_UNPACK_H_
#define TFMOT_TERNARY_KERNELS_AMX_UNPACK_H_

#include <cstdint>

#include "custom_ops/kernels/amx_tiles.h"
#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace amx {

constexpr int kHalfRows = kTileRows / 2;  // rows of W in a tile register

// One GFNI instruction makes weights of a field, being affine in its bits. `low`: the bits that,
// added to 1, give bit 0 of the weight; `high`: the same for bits 1 to 7.
//   b1: 0 -> 0xff, 1 -> 0x01. t2: 0 -> 0xff, 1 -> 0x00, 2 -> 0x01; of a code 3, which Prepare
//   refuses, it makes -2.
TFMOT_TERNARY_AMX_INLINE __m512i Affine(__m512i bytes, int low, int high) {
  const uint64_t matrix =
      0x0001010101010101u * static_cast<uint64_t>(high) | static_cast<uint64_t>(low) << 56;
  const __m512i rows = _mm512_set1_epi64(static_cast<int64_t>(matrix));
  return _mm512_gf2p8affine_epi64_epi8(bytes, rows, 0xff);
}

TFMOT_TERNARY_AMX_INLINE __m512i Pair(__m512i bytes, int pair) {
  return Affine(bytes, 1 << (2 * pair), 3 << (2 * pair));
}

template <int f>
TFMOT_TERNARY_AMX_INLINE __m512i Weights(const avx512::T2Codec::Block& block) {
  return Pair(block, f);
}
template <int f>
TFMOT_TERNARY_AMX_INLINE __m512i Weights(const avx512::T5Codec::Block& block) {
  // 81 and 162 are 01010001b and 10100010b: the upper bit pair is the digit.
  return f == 4 ? Pair(block.top, 3) : Pair(block.pairs, f % 4);
}
template <int f>
TFMOT_TERNARY_AMX_INLINE __m512i Weights(const avx512::B1Codec::Block& block) {
  return Affine(block.low, 0, 1 << f);
}

template <class Codec, int f>
TFMOT_TERNARY_AMX_INLINE __m512i WeightsOf(const typename Codec::Block& block) {
  if constexpr (Codec::kFormat == Format::kI8 || Codec::kFormat == Format::kI4) {
    constexpr int kOffset = DigitOffset(Codec::kFormat);
    return _mm512_sub_epi8(Codec::template Digits<f>(block),
                           _mm512_set1_epi8(static_cast<char>(kOffset)));
  } else {
    return Weights<f>(block);
  }
}

template <class Codec, int f>
TFMOT_TERNARY_AMX_INLINE void StoreWeights(const typename Codec::Block& block, int64_t step,
                                           int8_t* out) {
  if constexpr (f < Codec::kFields) {
    _mm512_store_si512(out + f * step, WeightsOf<Codec, f>(block));
    StoreWeights<Codec, f + 1>(block, step, out);
  }
}

// One block of 16 rows, `size` bytes of each from `offset` on.
template <class Codec>
TFMOT_TERNARY_AMX_INLINE void UnpackBlock(const uint8_t* const* rows, int64_t offset, int64_t size,
                                          int8_t* out) {
  __m512i columns[16];
  avx512::LoadColumns(rows, offset, size, columns);
  if (size == kBlockBytes) {
    for (int d = 0; d < 16; ++d) {
      StoreWeights<Codec, 0>(Codec::MakeBlock(columns[d]), kBlockBytes * kHalfRows, out + d * 64);
    }
  } else {
    for (int64_t d = 0; d < size / 4; ++d) {
      StoreWeights<Codec, 0>(Codec::MakeBlock(columns[d]), size * kHalfRows, out + d * 64);
    }
  }
}

// Weights [begin, end) of 16 rows; begin, and end if it is not k, between blocks.
template <class Codec>
TFMOT_TERNARY_AMX void Unpack(const GemmTile& tile, const uint8_t* const* rows, int64_t begin,
                              int64_t end, int8_t* out) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  for (int64_t at = begin; at < end; at += kBlockWeights) {
    const int64_t rest = tile.k - at;
    const int64_t size = rest < kBlockWeights ? ShortBlockBytes(Codec::kFormat, rest) : kBlockBytes;
    avx512::PrefetchNextBlock(tile, rows, at / Codec::kFields);
    UnpackBlock<Codec>(rows, at / Codec::kFields, size, out + (at - begin) * kHalfRows);
  }
}

}  // namespace amx
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_AMX_UNPACK_H_
