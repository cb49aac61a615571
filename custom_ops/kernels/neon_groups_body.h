// The part of neon_decode_body.h, which includes it, for rows of several groups.
#ifndef TFMOT_TERNARY_KERNELS_NEON_GROUPS_BODY_H_
#define TFMOT_TERNARY_KERNELS_NEON_GROUPS_BODY_H_

#include <algorithm>
#include <cstdint>

#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/neon.h"

#define TFMOT_TERNARY_NEON_BODY inline __attribute__((always_inline)) TFMOT_TERNARY_NEON_TARGET

namespace tfmot_ternary {
namespace neon {
namespace {

// Rows of W at once: t5 has ten registers of tables and two for every block.
template <class Codec>
constexpr int kRowsAtOnce = Codec::kFields == 5 ? 2 : 4;

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

}  // namespace
}  // namespace neon
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_NEON_GROUPS_BODY_H_
