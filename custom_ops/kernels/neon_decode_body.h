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

#define TFMOT_TERNARY_NEON_BODY inline __attribute__((always_inline)) TFMOT_TERNARY_NEON_TARGET

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

// Rows of W at once: t5 has ten registers of tables and two for every block.
template <class Codec>
constexpr int kRowsAtOnce = Codec::kFields == 5 ? 2 : 4;

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

// Group sums of R rows, in the order of the row; one lane for each row.
template <class Codec, int R>
struct GroupWriter {
  const int32_t* sums;  // of q over the groups
  int32_t* out;
  int64_t group_size;
  int64_t filled;     // weights in `pending`
  int32x4_t pending;  // the sum of digit * q over the group that is under way

  // Adds the lanes of R rows over `weights` of them, all of one group.
  TFMOT_TERNARY_NEON_BODY void Add(const int32x4_t* lanes, int shift, int64_t weights) {
    int32x4_t total;
    if constexpr (R == 4) {
      total = SumLanes4(lanes[0], lanes[1], lanes[2], lanes[3]);
    } else {
      total = vpaddq_s32(lanes[0], lanes[1]);
      total = vpaddq_s32(total, total);
    }
    if (shift == 2) total = vshrq_n_s32(total, 2);
    if (shift == 4) total = vshrq_n_s32(total, 4);
    pending = vaddq_s32(pending, total);
    filled += weights;
    if (filled == group_size) Flush();
  }
  TFMOT_TERNARY_NEON_BODY void Flush() {
    const int32x4_t all = SumWeights<Codec>(pending, vdupq_n_s32(*sums));
    if constexpr (R == 4) {
      vst1q_s32(out, all);
    } else {
      vst1_s32(out, vget_low_s32(all));
    }
    out += kTileRows;
    ++sums;
    filled = 0;
    pending = vdupq_n_s32(0);
  }
};

// R rows of W times one row of x, several groups. kWhole: no group is shorter than a field.
template <class Codec, class Dot, int R, bool kWhole>
struct Groups {
  static constexpr int kVectors = kBlockBytes / kVectorBytes;
  using Writer = GroupWriter<Codec, R>;

  template <int f>
  static TFMOT_TERNARY_NEON_BODY void AddFields(const typename Codec::Block (&blocks)[R][kVectors],
                                                const int8_t* q, Writer* writer) {
    if constexpr (f < Codec::kFields) {
      constexpr int kPart = kWhole ? kVectors : kVectors / 2;  // vectors of one sum
#pragma GCC unroll 2
      for (int part = 0; part < kVectors; part += kPart) {
        typename Dot::Lanes lanes[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) lanes[r] = Dot::Zero();
#pragma GCC unroll 4
        for (int v = part; v < part + kPart; ++v) {
          const int8x16_t activations = vld1q_s8(q + f * kBlockBytes + v * kVectorBytes);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) {
            Dot::template Add<Codec>(Codec::template Field<f>(blocks[r][v]), activations,
                                     &lanes[r]);
          }
        }
        int32x4_t wide[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) wide[r] = Dot::template Wide<Codec>(lanes[r]);
        writer->Add(wide, Codec::Shift(f), kPart * kVectorBytes);
      }
      AddFields<f + 1>(blocks, q, writer);
    }
  }

  static TFMOT_TERNARY_NEON_BODY void Run(const GemmTile& tile, int first, const int8_t* q,
                                          Writer writer) {
    constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
    const uint8_t* rows[R];
    PointToRows<R>(tile, first, rows);
    int64_t rest = tile.k;
    for (; rest >= kBlockWeights; rest -= kBlockWeights) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) __builtin_prefetch(rows[r] + R * tile.row_bytes);
      typename Codec::Block blocks[R][kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          blocks[r][v] = Codec::MakeBlock(vld1q_u8(rows[r] + v * kVectorBytes));
        }
      }
      AddFields<0>(blocks, q, &writer);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) rows[r] += kBlockBytes;
      q += kBlockWeights;
    }
    if (rest > 0) {
      AddShort(rows, q, rest, tile, writer);
    } else if (writer.filled > 0) {  // blocks of t5 end inside of groups
      writer.Flush();
    }
  }

  // A short block is decoded first: its fields are not as long as the groups.
  static __attribute__((noinline)) TFMOT_TERNARY_NEON_TARGET void AddShort(
      const uint8_t* const* rows, const int8_t* q, int64_t rest, const GemmTile& tile,
      Writer writer) {
    int8_t* digits = reinterpret_cast<int8_t*>(tile.scratch);
    const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) DecodeShort<Codec>(rows[r], size, digits + r * kShortBytes);
    for (int64_t j = 0; j < rest;) {
      const int64_t end = std::min(rest, j + writer.group_size - writer.filled);
      typename Dot::Lanes lanes[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) lanes[r] = Dot::Zero();
      for (int64_t i = j; i < end; i += kVectorBytes) {
        const int8x16_t activations = vld1q_s8(q + i);  // zero beyond the row
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          Dot::template Add<Codec>(vld1q_s8(digits + r * kShortBytes + i), activations, &lanes[r]);
        }
      }
      int32x4_t wide[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) wide[r] = Dot::template Wide<Codec>(lanes[r]);
      writer.Add(wide, 0, end - j);
      j = end;
    }
    if (writer.filled > 0) writer.Flush();
  }
};

template <class Codec, class Dot, bool kWhole>
TFMOT_TERNARY_NEON_TARGET void MultiplyGroups(const GemmTile& tile, const GemmInput& input,
                                              int32_t* acc) {
  constexpr int R = kRowsAtOnce<Codec>;
  for (int first = 0; first < tile.row_count; first += R) {
    for (int64_t i = 0; i < input.m; ++i) {
      const GroupWriter<Codec, R> writer = {input.sums + i * tile.groups,
                                            acc + i * tile.groups * kTileRows + first,
                                            tile.group_size, 0, vdupq_n_s32(0)};
      Groups<Codec, Dot, R, kWhole>::Run(tile, first, input.q + i * input.stride, writer);
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
