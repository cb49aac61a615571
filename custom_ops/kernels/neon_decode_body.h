// ARM64 kernels for few rows of x: packed weights are read once, in place. The including file
// defines TFMOT_TERNARY_NEON_TARGET, the target of these functions, and names with `Dot` how bytes
// are multiplied (Widening in neon.h has the members).
#ifndef TFMOT_TERNARY_KERNELS_NEON_DECODE_BODY_H_
#define TFMOT_TERNARY_KERNELS_NEON_DECODE_BODY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/neon.h"
#include "custom_ops/kernels/neon_groups_body.h"

namespace tfmot_ternary {
namespace neon {
namespace {

// The sum of digit * q of one row of W and one row of x.
template <class Codec, class Dot, bool kWide = Dot::kWide>
struct Sum {
  int32x4_t acc[Codec::kAccumulators];

  TFMOT_TERNARY_NEON_BODY void Clear() {
#pragma GCC unroll 4
    for (int a = 0; a < Codec::kAccumulators; ++a) acc[a] = Dot::Zero();
  }
  template <int f>
  TFMOT_TERNARY_NEON_BODY void Add(int8x16_t digits, int8x16_t q) {
    Dot::template Add<Codec>(digits, q, &acc[Codec::Accumulator(f)]);
  }
  TFMOT_TERNARY_NEON_BODY void EndBlock() {}
  TFMOT_TERNARY_NEON_BODY int32x4_t Total() const {
    int32x4_t total = acc[0];
    // Multiples of 2^Shift: the shifts drop zeros only.
    if constexpr (Codec::kAccumulators == 2) total = vaddq_s32(total, acc[1]);
    if constexpr (Codec::kAccumulators == 3) {
      total = vsraq_n_s32(vsraq_n_s32(total, acc[1], 2), acc[2], 4);
    }
    return total;
  }
};

// In 16 bits, widened after every block.
template <class Codec, class Dot>
struct Sum<Codec, Dot, false> {
  typename Dot::Lanes lanes;
  int32x4_t total;
  static_assert(kBlockBytes / kVectorBytes * Codec::kFields <= Dot::template kVectors<Codec>,
                "16 bits hold a block");

  TFMOT_TERNARY_NEON_BODY void Clear() {
    lanes = Dot::Zero();
    total = vdupq_n_s32(0);
  }
  template <int f>
  TFMOT_TERNARY_NEON_BODY void Add(int8x16_t digits, int8x16_t q) {
    Dot::template Add<Codec>(digits, q, &lanes);
  }
  TFMOT_TERNARY_NEON_BODY void EndBlock() {
    Dot::template AddWide<Codec>(lanes, &total);
    lanes = Dot::Zero();
  }
  TFMOT_TERNARY_NEON_BODY int32x4_t Total() const { return total; }
};

// R rows of W times M rows of x, one group. A packed vector meets kFields vectors of q.
template <class Codec, class Dot, int R, int M>
struct Rows {
  using RowSum = Sum<Codec, Dot>;

  template <int f>
  static TFMOT_TERNARY_NEON_BODY void AddFields(const typename Codec::Block* blocks,
                                                const int8_t* q, int64_t stride, int64_t size,
                                                RowSum* sums) {
    if constexpr (f < Codec::kFields) {
      int8x16_t activations[M];
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) activations[i] = vld1q_s8(q + i * stride + f * size);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int8x16_t digits = Codec::template Field<f>(blocks[r]);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) sums[i * R + r].template Add<f>(digits, activations[i]);
      }
      AddFields<f + 1>(blocks, q, stride, size, sums);
    }
  }

  // totals[i * R + r]: the lanes of the sum of digit * q.
  static TFMOT_TERNARY_NEON_BODY void Run(const GemmTile& tile, int first, const int8_t* q,
                                          int64_t stride, int32x4_t* totals) {
    constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
    const uint8_t* rows[R];
    PointToRows<R>(tile, first, rows);
    RowSum sums[R * M];
#pragma GCC unroll 4
    for (int i = 0; i < R * M; ++i) sums[i].Clear();
    int64_t rest = tile.k;
    for (; rest >= kBlockWeights; rest -= kBlockWeights) {
      // The same block of the rows that come next: short rows end before a prefetcher has learnt
      // them. Past the weights it is a hint without effect.
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) __builtin_prefetch(rows[r] + R * tile.row_bytes);
#pragma GCC unroll 4
      for (int64_t j = 0; j < kBlockBytes; j += kVectorBytes) {
        typename Codec::Block blocks[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) blocks[r] = Codec::MakeBlock(vld1q_u8(rows[r] + j));
        AddFields<0>(blocks, q + j, stride, kBlockBytes, sums);
      }
#pragma GCC unroll 4
      for (int i = 0; i < R * M; ++i) sums[i].EndBlock();
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) rows[r] += kBlockBytes;
      q += kBlockWeights;
    }
    if (rest > 0) {
      const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
      uint8_t bytes[R][kBlockBytes];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) CopyShort<Codec>(rows[r], size, bytes[r]);
      for (int64_t j = 0; j < size; j += kVectorBytes) {
        typename Codec::Block blocks[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) blocks[r] = Codec::MakeBlock(vld1q_u8(bytes[r] + j));
        AddFields<0>(blocks, q + j, stride, size, sums);
      }
#pragma GCC unroll 4
      for (int i = 0; i < R * M; ++i) sums[i].EndBlock();
    }
#pragma GCC unroll 4
    for (int i = 0; i < R * M; ++i) totals[i] = sums[i].Total();
  }
};

template <class Codec, class Dot>
TFMOT_TERNARY_NEON_TARGET void MultiplyOneGroup(const GemmTile& tile, const GemmInput& input,
                                                int32_t* acc) {
  int64_t i = 0;
  int32x4_t totals[4];
  for (; i + 2 <= input.m; i += 2) {  // a digit serves two products
    const int8_t* q = input.q + i * input.stride;
    const int32x4_t sums = vcombine_s32(vdup_n_s32(input.sums[i]), vdup_n_s32(input.sums[i + 1]));
    int32_t* out = acc + i * kTileRows;
    for (int r = 0; r < tile.row_count; r += 2) {
      Rows<Codec, Dot, 2, 2>::Run(tile, r, q, input.stride, totals);
      const int32x4_t all =
          SumWeights<Codec>(SumLanes4(totals[0], totals[1], totals[2], totals[3]), sums);
      vst1_s32(out + r, vget_low_s32(all));
      vst1_s32(out + kTileRows + r, vget_high_s32(all));
    }
  }
  if (i < input.m) {
    constexpr int R = kRowsAtOnce<Codec>;
    const int8_t* q = input.q + i * input.stride;
    const int32x4_t sums = vdupq_n_s32(input.sums[i]);
    for (int r = 0; r < tile.row_count; r += 4) {
      Rows<Codec, Dot, R, 1>::Run(tile, r, q, input.stride, totals);
      if constexpr (R == 2) Rows<Codec, Dot, R, 1>::Run(tile, r + 2, q, input.stride, totals + 2);
      vst1q_s32(acc + i * kTileRows + r,
                SumWeights<Codec>(SumLanes4(totals[0], totals[1], totals[2], totals[3]), sums));
    }
  }
}

template <class Codec, class Dot>
void Decode(const GemmTile& tile, const GemmInput& input, int64_t /*group_begin*/,
            int64_t /*group_end*/, int32_t* acc) {
  if (tile.groups == 1) {
    MultiplyOneGroup<Codec, Dot>(tile, input, acc);
  } else if (tile.group_size >= kBlockBytes) {
    MultiplyGroups<Codec, Dot, true>(tile, input, acc);
  } else {
    MultiplyGroups<Codec, Dot, false>(tile, input, acc);
  }
}

// The digits of a short block of the rows that are multiplied at once.
size_t DecodeScratchBytes(int64_t /*k*/) { return 4 * kShortBytes; }

}  // namespace
}  // namespace neon
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_NEON_DECODE_BODY_H_
