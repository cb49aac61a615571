// Kernels for many rows of x, for the vectors and codecs of the including file (codecs_body.h) and
// a way to multiply, `Dot`: a piece of up to 512 weights of each row of a tile of W is unpacked
// into the first-level cache in the order [k / 4][32][4], so that a vector holds four weights of
// each of several rows and the sums need no reduction across lanes; it meets all rows of x and
// makes room for the next piece.
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

constexpr int64_t kBlockM = 256;  // rows of x that a call takes

// Weights of a row in a piece, whole blocks.
template <class Codec>
constexpr int64_t kPiece =
    kMaxBlockWeights / (kBlockBytes * Codec::kFields) * (kBlockBytes * Codec::kFields);

// The fields of a short block may reach 8 * 4 - 1 weights past the row.
constexpr int64_t kPieceBytes = (kMaxBlockWeights + 32) * kTileRows;

// Unpacks weights [begin, end) of the tile; begin, and end if it is not k, lie between blocks. The
// packed bytes are turned before they are decoded: fewer bytes to move.
template <class Codec>
TFMOT_TERNARY_VECTOR void UnpackPiece(const GemmTile& tile, const uint8_t* const* rows,
                                      int64_t begin, int64_t end) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  for (int64_t at = begin; at < end; at += kBlockWeights) {
    const int64_t rest = tile.k - at;
    const int64_t size = rest < kBlockWeights ? ShortBlockBytes(Codec::kFormat, rest) : kBlockBytes;
    for (int64_t b = 0; b < size; b += 16) {
      const int64_t offset = at / Codec::kFields + b;
      const int count = static_cast<int>(std::min<int64_t>(4, (size - b) / 4));
      uint8_t* out = tile.scratch + (at - begin + b) * kTileRows;
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

  // What the sums of code * q are added to: less the sums of q.
  static TFMOT_TERNARY_VECTOR_INLINE void Start(const int32_t* sums, int64_t sums_stride,
                                                int32_t* out, int64_t out_stride) {
    if constexpr (i < M) {
      const Vector start = Set32(-*sums);
      Store(out, start);
      Store(out + kLanes, start);
      Next::Start(sums + sums_stride, sums_stride, out + out_stride, out_stride);
    }
  }

  static TFMOT_TERNARY_VECTOR_INLINE void AddTo(int32_t* out, int64_t out_stride,
                                                const Vector (&acc)[M][2]) {
    if constexpr (i < M) {
      Store(out, Add32(Load(out), Dot::Widen(acc[i][0])));
      Store(out + kLanes, Add32(Load(out + kLanes), Dot::Widen(acc[i][1])));
      Next::AddTo(out + out_stride, out_stride, acc);
    }
  }
};

// A group's part of a piece: some rows of x times two vectors of rows of W.
struct Part {
  const uint8_t* weights;
  int64_t dwords;  // of each row
  const int8_t* q;
  int64_t stride;
  bool first;           // of the group
  const int32_t* sums;  // of q over the group
  int64_t sums_stride;
  int32_t* out;
  int64_t out_stride;
};

template <class Dot, int M>
TFMOT_TERNARY_VECTOR void MultiplyPart(const Part& part) {
  using Block = BlockRows<Dot, 0, M>;
  // 16 bits hold 64 sums of two products of 2 and -128.
  constexpr int64_t kSpan = 64;
  const uint8_t* weights = part.weights;
  const int8_t* q = part.q;
  const int64_t stride = part.stride;
  if (part.first) Block::Start(part.sums, part.sums_stride, part.out, part.out_stride);
  for (int64_t left = part.dwords; left > 0;) {
    const int64_t span = Dot::kWide ? left : std::min(kSpan, left);
    Vector acc[M][2];
    Block::Clear(acc);
    for (const uint8_t* stop = weights + span * kTileRows * 4; weights != stop;
         weights += kTileRows * 4, q += 4) {
      Block::Add(Load(weights), Load(weights + kVectorBytes), q, stride, acc);
    }
    Block::AddTo(part.out, part.out_stride, acc);
    left -= span;
  }
}

using PartFunction = void (*)(const Part& part);

template <class Dot, size_t... i>
PartFunction ChoosePart(int64_t m, std::index_sequence<i...> /*unused*/) {
  static constexpr PartFunction kParts[] = {MultiplyPart<Dot, static_cast<int>(i) + 1>...};
  return kParts[m - 1];
}

// sums[i] += acc[i] * scales for the m rows of a group, [m, kTileRows] each:
// RowFunctions::add_groups for one group.
TFMOT_TERNARY_VECTOR_INLINE void AddScaledRows(const int32_t* acc, const float* scales, int64_t m,
                                               float* sums) {
  for (int64_t i = 0; i < m * kTileRows; i += kLanes) {
    AddScaled(acc + i, scales + i % kTileRows, sums + i);
  }
}

// Either acc[m, groups, kTileRows], or scales and sums.
template <class Codec, class Dot, bool kScaled>
TFMOT_TERNARY_VECTOR void MultiplyPieces(const GemmTile& tile, const GemmInput& input, int32_t* acc,
                                         const float* scales, float* sums) {
  const uint8_t* rows[kTileRows];
  for (int first = 0; first < kTileRows; first += kLanes) PointToRows(tile, first, rows + first);
  // Sums of groups, while a group goes on.
  int32_t* partial = reinterpret_cast<int32_t*>(tile.scratch + kPieceBytes);
  const int64_t blocks = (input.m + Dot::kMaxM - 1) / Dot::kMaxM;
  Part part;
  part.stride = input.stride;
  part.sums_stride = tile.groups;
  part.out_stride = kScaled ? kTileRows : tile.groups * kTileRows;
  for (int64_t begin = 0; begin < tile.k; begin += kPiece<Codec>) {
    const int64_t end = std::min(tile.k, begin + kPiece<Codec>);
    UnpackPiece<Codec>(tile, rows, begin, end);
    for (int64_t block = 0; block < blocks; ++block) {
      // Blocks of nearly equal size: a small one would wait for its own sums.
      const int64_t i = block * input.m / blocks;
      const int64_t m = (block + 1) * input.m / blocks - i;
      const PartFunction multiply = ChoosePart<Dot>(m, std::make_index_sequence<Dot::kMaxM>());
      PrefetchOutputs(input, i + begin * m / tile.k, i + end * m / tile.k);
      for (int64_t from = begin; from < end;) {
        const int64_t g = from / tile.group_size;
        const int64_t group_end = std::min(tile.k, (g + 1) * tile.group_size);
        const int64_t to = std::min(end, group_end);
        int32_t* out = kScaled ? partial + i * kTileRows : acc + (i * tile.groups + g) * kTileRows;
        part.dwords = (to - from + 3) / 4;
        part.q = input.q + i * input.stride + from;
        part.first = from == g * tile.group_size;
        part.sums = input.sums + i * tile.groups + g;
        for (int first = 0; first < tile.row_count; first += 2 * kLanes) {
          part.weights = tile.scratch + (from - begin) * kTileRows + first * 4;
          part.out = out + first;
          multiply(part);
        }
        if (kScaled && to == group_end) {
          AddScaledRows(out, scales + g * kTileRows, m, sums + i * kTileRows);
        }
        from = to;
      }
    }
  }
}

template <class Codec, class Dot>
void MultiplyPrefill(const GemmTile& tile, const GemmInput& input, int64_t /*group_begin*/,
                     int64_t /*group_end*/, int32_t* acc) {
  MultiplyPieces<Codec, Dot, false>(tile, input, acc, nullptr, nullptr);
}

template <class Codec, class Dot>
void MultiplyScaledPrefill(const GemmTile& tile, const GemmInput& input, const float* scales,
                           float* sums) {
  MultiplyPieces<Codec, Dot, true>(tile, input, nullptr, scales, sums);
}

inline size_t PrefillScratchBytes(int64_t /*k*/) {
  return kPieceBytes + kBlockM * kTileRows * sizeof(int32_t);
}

}  // namespace TFMOT_TERNARY_VECTOR_SPACE
}  // namespace tfmot_ternary

// Defines the decode and the prefill kernel of a format: name##Decode##suffix and so on.
#define TFMOT_TERNARY_DEFINE_GEMM(space, name, suffix, codes, dot)         \
  extern const GemmFunctions name##Decode##suffix, name##Prefill##suffix;  \
  const GemmFunctions name##Decode##suffix = {                             \
      /*block_m=*/4,                                                       \
      /*group_ranges=*/false,                                              \
      space::DecodeScratchBytes,                                           \
      /*load=*/nullptr,                                                    \
      space::MultiplyDecode<space::codes<space::dot::kWide>, space::dot>,  \
      /*multiply_scaled=*/nullptr};                                        \
  const GemmFunctions name##Prefill##suffix = {                            \
      space::kBlockM,                                                      \
      /*group_ranges=*/false,                                              \
      space::PrefillScratchBytes,                                          \
      /*load=*/nullptr,                                                    \
      space::MultiplyPrefill<space::codes<space::dot::kWide>, space::dot>, \
      space::MultiplyScaledPrefill<space::codes<space::dot::kWide>, space::dot>};

#endif  // TFMOT_TERNARY_KERNELS_PREFILL_BODY_H_
