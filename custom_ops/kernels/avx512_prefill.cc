// AVX-512 VNNI kernels for many rows of x. A piece of up to 512 weights of each row of a tile of W
// is unpacked into the first-level cache in the order [k / 4][32][4], so that a vector holds four
// weights of each of 16 rows and the sums need no reduction across lanes; it meets all rows of x,
// up to 12 at a time, and makes room for the next piece.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

constexpr int kHalfRows = kTileRows / 2;  // lanes of a vector
constexpr int kMaxM = 12;                 // times 2 vectors: 24 accumulators of 32 registers
constexpr int64_t kBlockM = 256;          // rows of x that a call takes

// Weights of a row in a piece; 16 KiB of the tile, which stay in the first-level cache. (A tile
// unpacked as a whole passes through the second level: measured, half of the time at 16 rows of x.)
template <class Codec>
constexpr int64_t kPiece =
    kMaxBlockWeights / (kBlockBytes * Codec::kFields) * (kBlockBytes * Codec::kFields);

// The fields of a short block may reach 8 * 4 - 1 weights past the row.
constexpr int64_t kPieceBytes = (kMaxBlockWeights + 32) * kTileRows;

// Weights [begin, end) of a tile; begin, and end if it is not k, between blocks.
template <class Codec>
TFMOT_TERNARY_AVX512 void Unpack(const GemmTile& tile, const uint8_t* const (*rows)[16],
                                 int64_t begin, int64_t end) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  for (int h = 0; h * kHalfRows < tile.row_count; ++h) {
    for (int64_t at = begin; at < end; at += kBlockWeights) {
      const int64_t rest = tile.k - at;
      const int64_t size =
          rest < kBlockWeights ? ShortBlockBytes(Codec::kFormat, rest) : kBlockBytes;
      __m512i columns[16];
      LoadColumns(rows[h], at / Codec::kFields, size, columns);
      PrefetchNextBlock(tile, rows[h], at / Codec::kFields);
      uint8_t* out = tile.scratch + (at - begin) * kTileRows + h * kHalfRows * 4;
      if (size == kBlockBytes) {
        for (int d = 0; d < 16; ++d) {
          StoreFields<Codec, 0>(Codec::MakeBlock(columns[d]), kBlockBytes * kTileRows,
                                out + d * kTileRows * 4);
        }
      } else {
        for (int64_t d = 0; d < size / 4; ++d) {
          StoreFields<Codec, 0>(Codec::MakeBlock(columns[d]), size * kTileRows,
                                out + d * kTileRows * 4);
        }
      }
    }
  }
}

// A group's part of a piece: some rows of x times the tile of W.
struct Part {
  const int8_t* q;
  int64_t q_stride;
  const uint8_t* weights;
  int64_t dwords;  // of each row
  // Sums of digit * q from the pieces before, or null; and where they go while the group
  // goes on, or null. [m, kTileRows], rows `partial_stride` apart.
  const int32_t* before;
  int32_t* partial;
  int64_t partial_stride;
  // Where the group ends: the sums of q, and either the sums of weight * q or what adds them up.
  const int32_t* q_sums;
  int64_t q_sums_stride;
  int32_t* acc;  // rows `acc_stride` apart
  int64_t acc_stride;
  const float* scales;  // null for `acc`
  float* sums;          // [m, kTileRows]
};

// Rows i to M - 1 of a block: M rows of x times N halves of the tile. Recursion unrolls for
// certain: an accumulator that gcc finds indexed by a loop stays in memory.
template <int i, int M, int N>
struct BlockRows {
  using Next = BlockRows<i + 1, M, N>;

  static TFMOT_TERNARY_AVX512_INLINE void Clear(__m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      for (int h = 0; h < N; ++h) acc[i][h] = _mm512_setzero_si512();
      Next::Clear(acc);
    }
  }

  static TFMOT_TERNARY_AVX512_INLINE void LoadSums(const int32_t* from, int64_t stride,
                                                   __m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      for (int h = 0; h < N; ++h) acc[i][h] = _mm512_load_si512(from + h * kHalfRows);
      Next::LoadSums(from + stride, stride, acc);
    }
  }

  // Four weights of each row of the tile.
  static TFMOT_TERNARY_AVX512_INLINE void Add(__m512i front, __m512i back, const int8_t* q,
                                              int64_t stride, __m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      int32_t four;
      std::memcpy(&four, q, sizeof(four));
      const __m512i broadcast = _mm512_set1_epi32(four);
      DotBytes(front, broadcast, &acc[i][0]);
      if constexpr (N > 1) DotBytes(back, broadcast, &acc[i][1]);
      Next::Add(front, back, q + stride, stride, acc);
    }
  }

  static TFMOT_TERNARY_AVX512_INLINE void StorePartial(int32_t* out, int64_t stride,
                                                       const __m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      for (int h = 0; h < N; ++h) _mm512_store_si512(out + h * kHalfRows, acc[i][h]);
      Next::StorePartial(out + stride, stride, acc);
    }
  }

  static TFMOT_TERNARY_AVX512_INLINE void Store(const int32_t* q_sums, int64_t q_sums_stride,
                                                int32_t* out, int64_t stride,
                                                const __m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      const __m512i q_sum = _mm512_set1_epi32(*q_sums);
      for (int h = 0; h < N; ++h) {
        _mm512_store_si512(out + h * kHalfRows, _mm512_sub_epi32(acc[i][h], q_sum));
      }
      Next::Store(q_sums + q_sums_stride, q_sums_stride, out + stride, stride, acc);
    }
  }

  static TFMOT_TERNARY_AVX512_INLINE void AddScaled(const int32_t* q_sums, int64_t q_sums_stride,
                                                    const __m512 (&scales)[N], float* sums,
                                                    const __m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      const __m512i q_sum = _mm512_set1_epi32(*q_sums);
      for (int h = 0; h < N; ++h) {
        const __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[i][h], q_sum));
        float* sum = sums + h * kHalfRows;
        _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), _mm512_mul_ps(value, scales[h])));
      }
      Next::AddScaled(q_sums + q_sums_stride, q_sums_stride, scales, sums + kTileRows, acc);
    }
  }
};

template <int M, int N>
TFMOT_TERNARY_AVX512 void MultiplyPart(const Part& part) {
  using Block = BlockRows<0, M, N>;
  __m512i acc[M][N];
  if (part.before == nullptr) {
    Block::Clear(acc);
  } else {
    Block::LoadSums(part.before, part.partial_stride, acc);
  }
  const uint8_t* weights = part.weights;
  const uint8_t* weights_end = weights + part.dwords * kTileRows * 4;
  const int64_t stride = part.q_stride;
  const int8_t* q = part.q;
  for (; weights != weights_end; weights += kTileRows * 4, q += 4) {
    const __m512i front = _mm512_load_si512(weights);
    const __m512i back = N > 1 ? _mm512_load_si512(weights + kHalfRows * 4) : front;
    Block::Add(front, back, q, stride, acc);
  }
  if (part.partial != nullptr) {
    Block::StorePartial(part.partial, part.partial_stride, acc);
  } else if (part.scales == nullptr) {
    Block::Store(part.q_sums, part.q_sums_stride, part.acc, part.acc_stride, acc);
  } else {
    __m512 scales[N];
    for (int h = 0; h < N; ++h) scales[h] = _mm512_loadu_ps(part.scales + h * kHalfRows);
    Block::AddScaled(part.q_sums, part.q_sums_stride, scales, part.sums, acc);
  }
}

#define TFMOT_TERNARY_BLOCKS(N)                                                      \
  {MultiplyPart<1, N>, MultiplyPart<2, N>,  MultiplyPart<3, N>,  MultiplyPart<4, N>, \
   MultiplyPart<5, N>, MultiplyPart<6, N>,  MultiplyPart<7, N>,  MultiplyPart<8, N>, \
   MultiplyPart<9, N>, MultiplyPart<10, N>, MultiplyPart<11, N>, MultiplyPart<12, N>}
constexpr void (*kParts[2][kMaxM])(const Part& part) = {TFMOT_TERNARY_BLOCKS(1),
                                                        TFMOT_TERNARY_BLOCKS(2)};
#undef TFMOT_TERNARY_BLOCKS

// Either acc[m, groups, kTileRows], or scales and sums.
struct Output {
  int32_t* acc;
  const float* scales;
  float* sums;
};

template <class Codec>
void MultiplyPieces(const GemmTile& tile, const GemmInput& input, const Output& output) {
  const uint8_t* rows[2][16];
  PointToRows(tile, 0, rows[0]);
  if (tile.row_count > kHalfRows) PointToRows(tile, kHalfRows, rows[1]);
  const auto* parts = kParts[tile.row_count > kHalfRows ? 1 : 0];
  const int64_t blocks = (input.m + kMaxM - 1) / kMaxM;
  Part part;
  part.q_stride = input.stride;
  part.partial_stride = output.scales != nullptr ? kTileRows : tile.groups * kTileRows;
  part.q_sums_stride = tile.groups;
  part.acc_stride = tile.groups * kTileRows;
  part.acc = nullptr;
  part.scales = nullptr;
  part.sums = nullptr;
  for (int64_t begin = 0; begin < tile.k; begin += kPiece<Codec>) {
    const int64_t end = std::min(tile.k, begin + kPiece<Codec>);
    Unpack<Codec>(tile, rows, begin, end);
    for (int64_t block = 0; block < blocks; ++block) {
      // Blocks of nearly equal size: a small one would wait for its own sums.
      const int64_t i = block * input.m / blocks;
      const int64_t m = (block + 1) * input.m / blocks - i;
      PrefetchOutputs(input, i + begin * m / tile.k, i + end * m / tile.k);
      for (int64_t from = begin; from < end;) {
        const int64_t g = from / tile.group_size;
        const int64_t group_end = std::min(tile.k, (g + 1) * tile.group_size);
        const int64_t to = std::min(end, group_end);
        part.q = input.q + i * input.stride + from;
        part.weights = tile.scratch + (from - begin) * kTileRows;
        part.dwords = (to - from + 3) / 4;
        int32_t* partial;  // of a group that lies in several pieces
        if (output.scales != nullptr) {
          partial = reinterpret_cast<int32_t*>(tile.scratch + kPieceBytes) + i * kTileRows;
          part.scales = output.scales + g * kTileRows;
          part.sums = output.sums + i * kTileRows;
        } else {
          part.acc = output.acc + (i * tile.groups + g) * kTileRows;
          partial = part.acc;
        }
        part.before = from > g * tile.group_size ? partial : nullptr;
        part.partial = to < group_end ? partial : nullptr;
        part.q_sums = input.sums + i * tile.groups + g;
        parts[m - 1](part);
        from = to;
      }
    }
  }
}

template <class Codec>
void Multiply(const GemmTile& tile, const GemmInput& input, int64_t /*group_begin*/,
              int64_t /*group_end*/, int32_t* acc) {
  MultiplyPieces<Codec>(tile, input, {acc, nullptr, nullptr});
}

template <class Codec>
void MultiplyScaled(const GemmTile& tile, const GemmInput& input, const float* scales,
                    float* sums) {
  MultiplyPieces<Codec>(tile, input, {nullptr, scales, sums});
}

size_t ScratchBytes(int64_t /*k*/) { return kPieceBytes + kBlockM * kTileRows * sizeof(int32_t); }

}  // namespace
}  // namespace avx512

#define TFMOT_TERNARY_DEFINE(name, codec)                                      \
  extern const GemmFunctions name;                                             \
  const GemmFunctions name = {                                                 \
      avx512::kBlockM,  /*group_ranges=*/false,          avx512::ScratchBytes, \
      /*load=*/nullptr, avx512::Multiply<avx512::codec>, avx512::MultiplyScaled<avx512::codec>};
TFMOT_TERNARY_DEFINE(T2PrefillAvx512Vnni, T2Codec)
TFMOT_TERNARY_DEFINE(T5PrefillAvx512Vnni, T5Codec)
TFMOT_TERNARY_DEFINE(B1PrefillAvx512Vnni, B1Codec)
TFMOT_TERNARY_DEFINE(I8PrefillAvx512Vnni, I8Codec)
TFMOT_TERNARY_DEFINE(I4PrefillAvx512Vnni, I4Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
