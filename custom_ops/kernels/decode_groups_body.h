// The part of decode_body.h, which includes it, for rows of several groups.
#ifndef TFMOT_TERNARY_KERNELS_DECODE_GROUPS_BODY_H_
#define TFMOT_TERNARY_KERNELS_DECODE_GROUPS_BODY_H_

#include <algorithm>
#include <cstdint>

#include "custom_ops/kernels/gemm.h"

namespace tfmot_ternary {
namespace TFMOT_TERNARY_VECTOR_SPACE {

// How far ahead of the rows that are read those that follow in memory are asked for, into the
// second-level cache: whole runs of `bytes`. (Measured with AVX2 and weights in
// memory: t2 half of the time, i8 two thirds, groups of t2 half.)
inline int64_t PrefetchDistance(int64_t bytes) {
  constexpr int64_t kDistance = 16384;
  return (kDistance + bytes - 1) / bytes * bytes;
}

// Rows of W that lie in the lanes of a vector.
constexpr int kLanes = kVectorBytes / 4;

// kLanes rows of the tile from `first` on; where the tile ends, its last row again.
inline void PointToRows(const GemmTile& tile, int first, const uint8_t** rows) {
  for (int r = 0; r < kLanes; ++r) {
    rows[r] = tile.rows + std::min(first + r, tile.row_count - 1) * tile.row_bytes;
  }
}

// Sums of groups of kLanes rows, in the order of the row.
template <class Codec>
struct GroupWriter {
  const int32_t* sums;  // of q over the groups
  int32_t* out;
  int64_t group_size;
  int64_t filled = 0;  // weights in `pending`
  Vector pending;      // the sum of code * q over the group that is under way

  // Adds `weights` of them, all of one group.
  TFMOT_TERNARY_VECTOR_INLINE void Add(Vector total, int64_t weights) {
    pending = filled == 0 ? total : Add32(pending, total);
    filled += weights;
    if (filled == group_size) Flush();
  }
  TFMOT_TERNARY_VECTOR_INLINE void Flush() {
    if (filled == 0) return;
    if (Codec::kSumFactor == 2) pending = Add32(pending, pending);
    Store(out, Sub32(pending, Set32(*sums)));
    out += kTileRows;
    ++sums;
    filled = 0;
  }
};

// kLanes rows of W times one row of x, several groups. The packed bytes are turned in registers, so
// that a vector holds four bytes of each row and a sum needs no other lane: the size of the groups
// costs next to nothing.
template <class Codec, class Dot>
struct Columns {
  static constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  // Independent chains of 32-bit sums for a field: vpdpbusd takes 4 or 5 cycles.
  static constexpr int kChains = Dot::kWide && Codec::kFields < 8 ? 2 : 1;
  using Accumulators = Vector[Codec::kFields][kChains];

  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE void AddFields(const typename Codec::Block& block,
                                                    const int8_t* q, int chain, Accumulators& acc) {
    if constexpr (f < Codec::kFields) {
      Dot::Add(Codec::template Field<f>(block), Broadcast4(q + f * kBlockBytes), &acc[f][chain]);
      AddFields<f + 1>(block, q, chain, acc);
    }
  }

  // Field f and those after it: the sums in 32 bits.
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE void Widen(const Accumulators& acc, Vector* sums) {
    if constexpr (f < Codec::kFields) {
      Vector sum = Dot::Widen(acc[f][0]);
      if constexpr (kChains == 2) sum = Add32(sum, Dot::Widen(acc[f][1]));
      sums[f] = Divide32<Codec::Shift(f)>(sum);
      Widen<f + 1>(acc, sums);
    }
  }

  // sums[f]: over kBytes packed bytes of each row; at most a block, 16 products. As many bytes are
  // asked for at `ahead`, line by line.
  template <int kBytes>
  static TFMOT_TERNARY_VECTOR_INLINE void SumFields(const uint8_t* const* rows, int64_t offset,
                                                    const int8_t* q, const uint8_t* ahead,
                                                    Vector* sums) {
    Accumulators acc;
    for (auto& field : acc) {
      for (Vector& chain : field) chain = Zero();
    }
#pragma GCC unroll 4
    for (int b = 0; b < kBytes; b += 16) {
      Vector columns[4];
      LoadColumns<true>(rows, offset + b, 4, columns);
      for (int line = 0; line < kLanes / 4; ++line) {
        __builtin_prefetch(ahead + b * kLanes + line * kBlockBytes, 0, 2);
      }
      AddFields<0>(Codec::MakeBlock(columns[0]), q + b, 0, acc);
      AddFields<0>(Codec::MakeBlock(columns[1]), q + b + 4, kChains - 1, acc);
      AddFields<0>(Codec::MakeBlock(columns[2]), q + b + 8, 0, acc);
      AddFields<0>(Codec::MakeBlock(columns[3]), q + b + 12, kChains - 1, acc);
    }
    Widen<0>(acc, sums);
  }

  // A short block, decoded into the scratch: its fields may start within a group.
  static TFMOT_TERNARY_VECTOR __attribute__((noinline)) void AddShortBlock(
      const GemmTile& tile, const uint8_t* const* rows, int64_t begin, const int8_t* q,
      GroupWriter<Codec>* writer) {
    const int64_t rest = tile.k - begin;
    const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
    for (int64_t d = 0; d < size / 4; d += 4) {
      Vector columns[4];
      LoadColumns<false>(rows, begin / Codec::kFields + d * 4, size / 4 - d, columns);
      for (int j = 0; j < 4 && d + j < size / 4; ++j) {
        const typename Codec::Block block = Codec::MakeBlock(columns[j]);
        StoreFields<Codec, 1>(&block, size * kLanes, tile.scratch + (d + j) * kVectorBytes);
      }
    }
    // Up to the end of a group at once: at most 64 products, 512 in magnitude.
    for (int64_t i = 0; i < rest;) {
      const int64_t end = std::min(rest, i + tile.group_size - writer->filled);
      const int64_t first = i;
      Vector sum = Zero();
      for (; i < end; i += 4) {
        Dot::Add(Load(tile.scratch + i * kLanes), Broadcast4(q + begin + i), &sum);
      }
      // Digits are weight + 1, twice the code where kSumFactor is 2.
      writer->Add(Divide32<Codec::kSumFactor - 1>(Dot::Widen(sum)), i - first);
    }
  }

  static TFMOT_TERNARY_VECTOR void Run(const GemmTile& tile, const uint8_t* const* rows,
                                       const int8_t* q, GroupWriter<Codec> writer) {
    int64_t begin = 0;
    const uint8_t* ahead = rows[0] + PrefetchDistance(kLanes * tile.row_bytes);
    for (; begin + kBlockWeights <= tile.k; begin += kBlockWeights) {
      const int64_t offset = begin / Codec::kFields;
      if (tile.group_size == kBlockBytes / 2) {
        Vector halves[2][Codec::kFields];
        SumFields<kBlockBytes / 2>(rows, offset, q + begin, ahead, halves[0]);
        SumFields<kBlockBytes / 2>(rows, offset + kBlockBytes / 2, q + begin + kBlockBytes / 2,
                                   ahead + kLanes * kBlockBytes / 2, halves[1]);
        for (int f = 0; f < Codec::kFields; ++f) {
          writer.Add(halves[0][f], kBlockBytes / 2);
          writer.Add(halves[1][f], kBlockBytes / 2);
        }
      } else {
        Vector sums[Codec::kFields];
        SumFields<kBlockBytes>(rows, offset, q + begin, ahead, sums);
        for (const Vector& sum : sums) writer.Add(sum, kBlockBytes);
      }
      ahead += kLanes * kBlockBytes;
    }
    if (begin < tile.k) AddShortBlock(tile, rows, begin, q, &writer);
    writer.Flush();
  }
};

template <class Codec, class Dot>
TFMOT_TERNARY_VECTOR void MultiplyGroups(const GemmTile& tile, const GemmInput& input,
                                         int32_t* acc) {
  for (int first = 0; first < tile.row_count; first += kLanes) {
    const uint8_t* rows[kLanes];
    PointToRows(tile, first, rows);
    for (int64_t i = 0; i < input.m; ++i) {
      GroupWriter<Codec> writer;
      writer.sums = input.sums + i * tile.groups;
      writer.out = acc + i * tile.groups * kTileRows + first;
      writer.group_size = tile.group_size;
      writer.pending = Zero();
      Columns<Codec, Dot>::Run(tile, rows, input.q + i * input.stride, writer);
    }
  }
}

}  // namespace TFMOT_TERNARY_VECTOR_SPACE
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_DECODE_GROUPS_BODY_H_
