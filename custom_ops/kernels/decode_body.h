// Kernels for few rows of x, for the vectors and codecs of the including file (codecs_body.h) and a
// way to multiply, `Dot`: weights are read in place, and every packed byte once for one or several
// rows of x.
#ifndef TFMOT_TERNARY_KERNELS_DECODE_BODY_H_
#define TFMOT_TERNARY_KERNELS_DECODE_BODY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "custom_ops/kernels/decode_groups_body.h"
#include "custom_ops/kernels/gemm.h"

namespace tfmot_ternary {
namespace TFMOT_TERNARY_VECTOR_SPACE {

// The sum over the accumulators of a row, each divided by its multiple. In 16 bits 8 packed vectors
// may have gone in: t2 16 products of 512 and as many of 4 * 512, divided; t5 40 of 512; b1, bit by
// bit, 16 of 256, 512, 1024 and 2048, where a partial sum reaches -32768.
template <class Codec, class Dot, int a = 0>
TFMOT_TERNARY_VECTOR_INLINE Vector Total(const Vector* acc) {
  if constexpr (a == Codec::kAccumulators - 1) {
    return acc[a];
  } else {
    const Vector rest = Total<Codec, Dot, a + 1>(acc);
    if constexpr (Dot::kWide) {
      return Add32(acc[a], Divide32<Codec::kStep>(rest));
    } else {
      return Add16(acc[a], Divide16<Codec::kStep>(rest));
    }
  }
}

// R rows of W times M rows of x, one group. Each packed vector meets kFields vectors of q. Packs of
// indices unroll for certain: accumulators that gcc 12 finds indexed by a loop stay in memory.
template <class Codec, class Dot, int R, int M>
struct Rows {
  static constexpr int kSums = R * M;
  static constexpr int kAccumulators = Codec::kAccumulators;
  static constexpr int64_t kSpanBytes = 8 * kVectorBytes;  // until sums of 16 bits are widened
  using Sums = std::make_index_sequence<kSums>;
  using Accumulators = Vector[kSums * kAccumulators];

  template <size_t... j>
  static TFMOT_TERNARY_VECTOR_INLINE void Clear(Accumulators& acc, std::index_sequence<j...>) {
    ((acc[j] = Zero()), ...);
  }

  template <int f, size_t... j>
  static TFMOT_TERNARY_VECTOR_INLINE void AddFields(const typename Codec::Block* blocks,
                                                    const int8_t* q, int64_t stride, int64_t step,
                                                    Accumulators& acc,
                                                    std::index_sequence<j...> s) {
    if constexpr (f < Codec::kFields) {
      (Dot::Add(Codec::template Field<f>(blocks[j / M]), Load(q + j % M * stride + f * step),
                &acc[j * kAccumulators + Codec::Accumulator(f)]),
       ...);
      AddFields<f + 1>(blocks, q, stride, step, acc, s);
    }
  }

  // A vector of packed bytes, or its first `count`, of each row, with the activations of field 0 at
  // q.
  template <bool kPart, size_t... r>
  static TFMOT_TERNARY_VECTOR_INLINE void AddVector(const uint8_t* rows, int64_t row_bytes,
                                                    int64_t count, const int8_t* q, int64_t stride,
                                                    int64_t step, Accumulators& acc,
                                                    std::index_sequence<r...>) {
    Vector bytes[R] = {kPart ? LoadPart(rows + r * row_bytes, count)
                             : Load(rows + r * row_bytes)...};
    (HoldInRegister(&bytes[r]), ...);
    const typename Codec::Block blocks[R] = {Codec::MakeBlock(bytes[r])...};
    AddFields<0>(blocks, q, stride, step, acc, Sums());
  }

  // Adds the sums in 16 bits to those in 32.
  template <size_t... j>
  static TFMOT_TERNARY_VECTOR_INLINE void Widen(const Accumulators& acc, Vector* totals,
                                                std::index_sequence<j...>) {
    ((totals[j] = Add32(totals[j], AddPairs16(Total<Codec, Dot>(acc + j * kAccumulators)))), ...);
  }

  // totals[r * M + i]: the lanes of the sum of code * q.
  static TFMOT_TERNARY_VECTOR_INLINE void Run(const GemmTile& tile, int first_row, const int8_t* q,
                                              int64_t stride, Vector* totals) {
    constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
    constexpr auto kRows = std::make_index_sequence<R>();
    const int64_t row_bytes = tile.row_bytes;
    const int64_t ahead = PrefetchDistance(R * row_bytes);
    const uint8_t* rows = tile.rows + first_row * row_bytes;
    const uint8_t* full_end = rows + tile.k / kBlockWeights * kBlockBytes;
    Accumulators acc;
    Clear(acc, std::make_index_sequence<kSums * kAccumulators>());
    for (int j = 0; j < kSums; ++j) totals[j] = Zero();
    while (rows != full_end) {
      const int64_t span = Dot::kWide ? full_end - rows : std::min(kSpanBytes, full_end - rows);
      for (const uint8_t* end = rows + span; rows != end; rows += kBlockBytes) {
        if constexpr (M == 1) {
          for (int r = 0; r < R; ++r) __builtin_prefetch(rows + r * row_bytes + ahead, 0, 2);
        }
        AddVector<false>(rows, row_bytes, kVectorBytes, q, stride, kBlockBytes, acc, kRows);
        if constexpr (kVectorBytes < kBlockBytes) {
          AddVector<false>(rows + kVectorBytes, row_bytes, kVectorBytes, q + kVectorBytes, stride,
                           kBlockBytes, acc, kRows);
        }
        q += kBlockWeights;
      }
      if constexpr (!Dot::kWide) {
        Widen(acc, totals, Sums());
        Clear(acc, std::make_index_sequence<kSums * kAccumulators>());
      }
    }
    const int64_t rest = tile.k % kBlockWeights;
    if (rest > 0) {
      const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
      AddVector<true>(rows, row_bytes, size, q, stride, size, acc, kRows);
      if (size > kVectorBytes) {
        AddVector<true>(rows + kVectorBytes, row_bytes, size - kVectorBytes, q + kVectorBytes,
                        stride, size, acc, kRows);
      }
    }
    if constexpr (Dot::kWide) {
      for (int j = 0; j < kSums; ++j) totals[j] = Total<Codec, Dot>(acc + j * kAccumulators);
    } else {
      Widen(acc, totals, Sums());
    }
  }
};

// Accumulators of 16 or 32 registers that leave enough for masks and tables (measured).
constexpr int kAccumulatorsAtOnce = kVectorBytes == 64 ? 20 : 10;

// Rows r to r + R - 1 of the tile times M rows of x; R * M = 4 or less. As many rows of W as there
// are accumulators for share the loads of q.
template <class Codec, class Dot, int R, int M>
TFMOT_TERNARY_VECTOR_INLINE void MultiplyRows(const GemmTile& tile, const GemmInput& input, int r,
                                              int64_t i, int32_t* out) {
  constexpr int kFit = kAccumulatorsAtOnce / (M * Codec::kAccumulators);
  constexpr int kAtOnce = R >= 4 && kFit >= 4 ? 4 : R >= 2 && kFit >= 2 ? 2 : 1;
  Vector totals[4];
  const int8_t* q = input.q + i * input.stride;
  for (int s = 0; s < R; s += kAtOnce) {
    Rows<Codec, Dot, kAtOnce, M>::Run(tile, r + s, q, input.stride, totals + s * M);
  }
  for (int j = R * M; j < 4; ++j) totals[j] = Zero();
  alignas(16) int32_t sums[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(sums),
                  SumLanes4(totals[0], totals[1], totals[2], totals[3]));
  for (int j = 0; j < R * M; ++j) {
    out[j % M * kTileRows + j / M] = Codec::kSumFactor * sums[j] - input.sums[i + j % M];
  }
}

// All rows of the tile times rows of x from i on, M at a time; returns the first row left over.
template <class Codec, class Dot, int M>
TFMOT_TERNARY_VECTOR int64_t MultiplyOneGroup(const GemmTile& tile, const GemmInput& input,
                                              int64_t i, int32_t* acc) {
  constexpr int kRows = 4 / M;
  for (; i + M <= input.m; i += M) {
    int32_t* out = acc + i * kTileRows;
    int r = 0;
    for (; r + kRows <= tile.row_count; r += kRows) {
      MultiplyRows<Codec, Dot, kRows, M>(tile, input, r, i, out + r);
    }
    for (; r < tile.row_count; ++r) MultiplyRows<Codec, Dot, 1, M>(tile, input, r, i, out + r);
  }
  return i;
}

template <class Codec, class Dot>
void MultiplyDecode(const GemmTile& tile, const GemmInput& input, int64_t /*group_begin*/,
                    int64_t /*group_end*/, int32_t* acc) {
  if (tile.groups > 1) return MultiplyGroups<Codec, Dot>(tile, input, acc);
  const int64_t i = MultiplyOneGroup<Codec, Dot, 2>(tile, input, 0, acc);
  MultiplyOneGroup<Codec, Dot, 1>(tile, input, i, acc);
}

// A short block, decoded: at most 8 * 60 weights of kLanes rows.
inline size_t DecodeScratchBytes(int64_t /*k*/) { return 8 * kBlockBytes * kLanes; }

}  // namespace TFMOT_TERNARY_VECTOR_SPACE
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_DECODE_BODY_H_
