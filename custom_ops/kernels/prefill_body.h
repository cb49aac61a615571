// Kernels for many rows of x, for the vectors and codecs of the including file (codecs_body.h) and
// a way to multiply, `Dot`: a tile of 32 rows of W is unpacked once into the order [k / 4][32][4],
// so that a vector holds four weights of each of several rows and the sums need no reduction across
// lanes; then it meets all rows of x.
#ifndef TFMOT_TERNARY_KERNELS_PREFILL_BODY_H_
#define TFMOT_TERNARY_KERNELS_PREFILL_BODY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "custom_ops/kernels/decode_body.h"
#include "custom_ops/kernels/gemm.h"

namespace tfmot_ternary {
namespace TFMOT_TERNARY_VECTOR_SPACE {

// The packed bytes are turned before they are decoded: fewer bytes to move. All rows of a block
// before the next block, so that what is written, a quarter of every line at a time, stays in the
// first-level cache meanwhile.
template <class Codec>
TFMOT_TERNARY_VECTOR void LoadTile(const GemmTile& tile) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  const uint8_t* rows[kTileRows];
  for (int first = 0; first < kTileRows; first += kLanes) PointToRows(tile, first, rows + first);
  for (int64_t begin = 0; begin < tile.k; begin += kBlockWeights) {
    const int64_t rest = tile.k - begin;
    const int64_t size =
        rest < kBlockWeights ? ShortBlockBytes(Codec::kFormat, rest) : kBlockBytes;
    for (int64_t b = 0; b < size; b += 16) {
      const int64_t offset = begin / Codec::kFields + b;
      const int count = static_cast<int>(std::min<int64_t>(4, (size - b) / 4));
      uint8_t* out = tile.scratch + (begin + b) * kTileRows;
      for (int first = 0; first < tile.row_count; first += kLanes) {
        Vector columns[4];
        if (count == 4) {
          LoadColumns<true>(rows + first, offset, 4, columns);
        } else {
          LoadColumns<false>(rows + first, offset, count, columns);
        }
        for (int j = 0; j < count; ++j) {
          const typename Codec::Block block = Codec::MakeBlock(columns[j]);
          StoreFields<Codec, 1>(&block, size * kTileRows, out + (j * kTileRows + first) * 4);
        }
      }
    }
  }
}

// Rows i to M - 1 of a block: M rows of x times two vectors of the tile. Recursion unrolls for
// certain: an accumulator that gcc finds indexed by a loop stays in memory.
template <class Dot, int i, int M>
struct BlockRows {
  using Next = BlockRows<Dot, i + 1, M>;

  static TFMOT_TERNARY_VECTOR_INLINE void Clear(Vector (&acc)[M][2]) {
    if constexpr (i < M) {
      acc[i][0] = Zero();
      acc[i][1] = Zero();
      Next::Clear(acc);
    }
  }

  // Four weights of each row of the tile.
  static TFMOT_TERNARY_VECTOR_INLINE void Add(Vector front, Vector back, const int8_t* q,
                                              int64_t stride, Vector (&acc)[M][2]) {
    if constexpr (i < M) {
      const Vector four = Broadcast4(q);
      Dot::Add(front, four, &acc[i][0]);
      Dot::Add(back, four, &acc[i][1]);
      Next::Add(front, back, q + stride, stride, acc);
    }
  }

  // The first time less the sums of q, later in addition.
  static TFMOT_TERNARY_VECTOR_INLINE void Write(bool first, const int32_t* sums,
                                                int64_t sums_stride, int32_t* out,
                                                int64_t out_stride, const Vector (&acc)[M][2]) {
    if constexpr (i < M) {
      const Vector front = Dot::Widen(acc[i][0]);
      const Vector back = Dot::Widen(acc[i][1]);
      if (first) {
        const Vector sum = Set32(*sums);
        Store(out, Sub32(front, sum));
        Store(out + kLanes, Sub32(back, sum));
      } else {
        Store(out, Add32(Load(out), front));
        Store(out + kLanes, Add32(Load(out + kLanes), back));
      }
      Next::Write(first, sums + sums_stride, sums_stride, out + out_stride, out_stride, acc);
    }
  }
};

// Dwords [begin, end) of k.
template <class Dot, int M>
TFMOT_TERNARY_VECTOR void MultiplyBlock(const uint8_t* tile, const int8_t* q, int64_t stride,
                                        int64_t begin, int64_t end, const int32_t* sums,
                                        int64_t sums_stride, int32_t* out, int64_t out_stride) {
  using Block = BlockRows<Dot, 0, M>;
  // 16 bits hold 64 sums of two products of 2 and -128.
  constexpr int64_t kSpan = 64;
  const uint8_t* weights = tile + begin * kTileRows * 4;
  q += begin * 4;
  for (int64_t d = begin; d < end;) {
    const int64_t span = Dot::kWide ? end - d : std::min(kSpan, end - d);
    Vector acc[M][2];
    Block::Clear(acc);
    for (const uint8_t* stop = weights + span * kTileRows * 4; weights != stop;
         weights += kTileRows * 4, q += 4) {
      Block::Add(Load(weights), Load(weights + kVectorBytes), q, stride, acc);
    }
    Block::Write(d == begin, sums, sums_stride, out, out_stride, acc);
    d += span;
  }
}

using BlockFunction = void (*)(const uint8_t* tile, const int8_t* q, int64_t stride, int64_t begin,
                               int64_t end, const int32_t* sums, int64_t sums_stride, int32_t* out,
                               int64_t out_stride);

template <class Dot, size_t... i>
BlockFunction ChooseBlock(int64_t m, std::index_sequence<i...> /*unused*/) {
  static constexpr BlockFunction kBlocks[] = {MultiplyBlock<Dot, static_cast<int>(i) + 1>...};
  return kBlocks[m - 1];
}

template <class Dot>
void MultiplyPrefill(const GemmTile& tile, const GemmInput& input, int64_t group_begin,
                     int64_t group_end, int32_t* acc) {
  const int64_t range = group_end - group_begin;
  const int64_t blocks = (input.m + Dot::kMaxM - 1) / Dot::kMaxM;
  for (int64_t block = 0; block < blocks; ++block) {
    // Blocks of nearly equal size: a small one would wait for its own sums.
    const int64_t i = block * input.m / blocks;
    const int64_t m = (block + 1) * input.m / blocks - i;
    const BlockFunction multiply = ChooseBlock<Dot>(m, std::make_index_sequence<Dot::kMaxM>());
    for (int64_t g = group_begin; g < group_end; ++g) {
      const int64_t begin = g * tile.group_size / 4;
      const int64_t end = (std::min(tile.k, (g + 1) * tile.group_size) + 3) / 4;
      int32_t* out = acc + (i * range + g - group_begin) * kTileRows;
      for (int first = 0; first < tile.row_count; first += 2 * kLanes) {
        multiply(tile.scratch + first * 4, input.q + i * input.stride, input.stride, begin, end,
                 input.sums + i * tile.groups + g, tile.groups, out + first, range * kTileRows);
      }
    }
  }
}

// The fields of a short block may reach 8 * 4 - 1 weights past the row.
inline size_t PrefillScratchBytes(int64_t k) {
  return static_cast<size_t>((k + 32 + 63) / 64 * 64 * kTileRows);
}

}  // namespace TFMOT_TERNARY_VECTOR_SPACE
}  // namespace tfmot_ternary

// Defines the decode and the prefill kernel of a format: name##Decode##suffix and so on.
#define TFMOT_TERNARY_DEFINE_GEMM(space, name, suffix, codes, dot)                           \
  extern const GemmFunctions name##Decode##suffix, name##Prefill##suffix;                    \
  const GemmFunctions name##Decode##suffix = {                                               \
      /*block_m=*/4, /*group_ranges=*/false, space::DecodeScratchBytes, /*load=*/nullptr,    \
      space::MultiplyDecode<space::codes<space::dot::kWide>, space::dot>};                   \
  const GemmFunctions name##Prefill##suffix = {                                              \
      /*block_m=*/24, /*group_ranges=*/true, space::PrefillScratchBytes,                     \
      space::LoadTile<space::codes<space::dot::kWide>>, space::MultiplyPrefill<space::dot>};

#endif  // TFMOT_TERNARY_KERNELS_PREFILL_BODY_H_
