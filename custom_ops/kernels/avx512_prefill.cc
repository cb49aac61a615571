// AVX-512 VNNI kernels for many rows of x: a tile of 32 rows of W is unpacked once into the order
// [k / 4][32][4], so that a vector holds four weights of each of 16 rows and the sums need no
// reduction across lanes; then it meets all rows of x, up to 12 at a time.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

constexpr int kHalfRows = kTileRows / 2;  // lanes of a vector
constexpr int kMaxM = 12;                 // times 2 vectors: 24 accumulators of 32 registers

template <class Codec>
TFMOT_TERNARY_AVX512 void LoadTile(const GemmTile& tile) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  for (int first = 0; first < tile.row_count; first += kHalfRows) {
    const uint8_t* rows[16];
    PointToRows(tile, first, rows);
    for (int64_t begin = 0; begin < tile.k; begin += kBlockWeights) {
      const int64_t rest = tile.k - begin;
      const int64_t size =
          rest < kBlockWeights ? ShortBlockBytes(Codec::kFormat, rest) : kBlockBytes;
      __m512i columns[16];
      LoadColumns(rows, begin / Codec::kFields, size, columns);
      uint8_t* out = tile.scratch + begin * kTileRows + first * 4;
      for (int64_t d = 0; d < size / 4; ++d) {
        StoreFields<Codec, 0>(Codec::MakeBlock(columns[d]), size * kTileRows,
                              out + d * kTileRows * 4);
      }
    }
  }
}

// Rows i to M - 1 of a block: M rows of x times N halves of the tile. Recursion unrolls for
// certain: an accumulator that gcc finds indexed by a loop stays in memory.
template <int i, int M, int N>
struct BlockRows {
  using Next = BlockRows<i + 1, M, N>;

  static TFMOT_TERNARY_AVX512_INLINE void Clear(__m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      acc[i][0] = _mm512_setzero_si512();
      if constexpr (N > 1) acc[i][1] = _mm512_setzero_si512();
      Next::Clear(acc);
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

  static TFMOT_TERNARY_AVX512_INLINE void Store(const int32_t* sums, int64_t sums_stride,
                                                int32_t* out, int64_t out_stride,
                                                const __m512i (&acc)[M][N]) {
    if constexpr (i < M) {
      const __m512i sum = _mm512_set1_epi32(*sums);
      _mm512_store_si512(out, _mm512_sub_epi32(acc[i][0], sum));
      if constexpr (N > 1) {
        _mm512_store_si512(out + kHalfRows, _mm512_sub_epi32(acc[i][1], sum));
      }
      Next::Store(sums + sums_stride, sums_stride, out + out_stride, out_stride, acc);
    }
  }
};

// Dwords [begin, end) of k.
template <int M, int N>
TFMOT_TERNARY_AVX512 void MultiplyBlock(const uint8_t* tile, const int8_t* q, int64_t stride,
                                        int64_t begin, int64_t end, const int32_t* sums,
                                        int64_t sums_stride, int32_t* out, int64_t out_stride) {
  using Block = BlockRows<0, M, N>;
  __m512i acc[M][N];
  Block::Clear(acc);
  const uint8_t* weights = tile + begin * kTileRows * 4;
  const uint8_t* weights_end = tile + end * kTileRows * 4;
  q += begin * 4;
  for (; weights != weights_end; weights += kTileRows * 4, q += 4) {
    const __m512i front = _mm512_load_si512(weights);
    const __m512i back = N > 1 ? _mm512_load_si512(weights + kHalfRows * 4) : front;
    Block::Add(front, back, q, stride, acc);
  }
  Block::Store(sums, sums_stride, out, out_stride, acc);
}

using BlockFunction = void (*)(const uint8_t* tile, const int8_t* q, int64_t stride, int64_t begin,
                               int64_t end, const int32_t* sums, int64_t sums_stride, int32_t* out,
                               int64_t out_stride);

#define TFMOT_TERNARY_BLOCKS(N)                                                          \
  {MultiplyBlock<1, N>, MultiplyBlock<2, N>,  MultiplyBlock<3, N>,  MultiplyBlock<4, N>, \
   MultiplyBlock<5, N>, MultiplyBlock<6, N>,  MultiplyBlock<7, N>,  MultiplyBlock<8, N>, \
   MultiplyBlock<9, N>, MultiplyBlock<10, N>, MultiplyBlock<11, N>, MultiplyBlock<12, N>}
constexpr BlockFunction kBlocks[2][kMaxM] = {TFMOT_TERNARY_BLOCKS(1), TFMOT_TERNARY_BLOCKS(2)};
#undef TFMOT_TERNARY_BLOCKS

void Multiply(const GemmTile& tile, const GemmInput& input, int64_t group_begin, int64_t group_end,
              int32_t* acc) {
  const BlockFunction* functions = kBlocks[tile.row_count > kHalfRows ? 1 : 0];
  const int64_t range = group_end - group_begin;
  const int64_t blocks = (input.m + kMaxM - 1) / kMaxM;
  for (int64_t block = 0; block < blocks; ++block) {
    // Blocks of nearly equal size: a small one would wait for its own sums.
    const int64_t i = block * input.m / blocks;
    const int64_t m = (block + 1) * input.m / blocks - i;
    for (int64_t g = group_begin; g < group_end; ++g) {
      const int64_t begin = g * tile.group_size;
      const int64_t end = std::min(tile.k, begin + tile.group_size);
      functions[m - 1](tile.scratch, input.q + i * input.stride, input.stride, begin / 4,
                       (end + 3) / 4, input.sums + i * tile.groups + g, tile.groups,
                       acc + (i * range + g - group_begin) * kTileRows, range * kTileRows);
    }
  }
}

// The fields of a short block may reach 8 * 4 - 1 weights past the row.
size_t ScratchBytes(int64_t k) { return static_cast<size_t>((k + 32 + 63) / 64 * 64 * kTileRows); }

}  // namespace
}  // namespace avx512

#define TFMOT_TERNARY_DEFINE(name, codec)                                                  \
  extern const GemmFunctions name;                                                         \
  const GemmFunctions name = {/*block_m=*/24, /*group_ranges=*/true, avx512::ScratchBytes, \
                              avx512::LoadTile<avx512::codec>, avx512::Multiply};
TFMOT_TERNARY_DEFINE(T2PrefillAvx512Vnni, T2Codec)
TFMOT_TERNARY_DEFINE(T5PrefillAvx512Vnni, T5Codec)
TFMOT_TERNARY_DEFINE(B1PrefillAvx512Vnni, B1Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
