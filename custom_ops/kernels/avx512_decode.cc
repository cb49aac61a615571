// AVX-512 VNNI kernels for few rows of x: weights are read once, in place.
#if defined(__x86_64__)

#include <algorithm>

#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

// R rows of W times M rows of x, one group. Each packed block meets kFields runs of q.
template <class Codec, int R, int M>
struct Rows {
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE void AddFields(const typename Codec::Block* blocks,
                                                    const int8_t* q, int64_t stride, int64_t size,
                                                    __m512i (*acc)[Codec::kAccumulators]) {
    if constexpr (f < Codec::kFields) {
      __m512i activations[M];
      for (int i = 0; i < M; ++i) activations[i] = Load(q + i * stride + f * size);
      for (int r = 0; r < R; ++r) {
        const __m512i codes = Codec::template Field<f>(blocks[r]);
        for (int i = 0; i < M; ++i) {
          DotBytes(codes, activations[i], &acc[i * R + r][Codec::Accumulator(f)]);
        }
      }
      AddFields<f + 1>(blocks, q, stride, size, acc);
    }
  }

  // totals[i * R + r]: the lanes of the sum of code * q.
  static TFMOT_TERNARY_AVX512_INLINE void Run(const GemmTile& tile, int first_row, const int8_t* q,
                                              int64_t stride, __m512i* totals) {
    constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
    const uint8_t* rows = tile.rows + first_row * tile.row_bytes;
    __m512i acc[R * M][Codec::kAccumulators];
    for (auto& row : acc) {
      for (__m512i& lanes : row) lanes = _mm512_setzero_si512();
    }
    int64_t rest = tile.k;
    for (; rest >= kBlockWeights; rest -= kBlockWeights) {
      typename Codec::Block blocks[R];
      for (int r = 0; r < R; ++r) {
        __m512i bytes = Load(rows + r * tile.row_bytes);
        HoldInRegister(&bytes);
        blocks[r] = Codec::MakeBlock(bytes);
      }
      AddFields<0>(blocks, q, stride, kBlockBytes, acc);
      rows += kBlockBytes;
      q += kBlockWeights;
    }
    if (rest > 0) {
      const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
      typename Codec::Block blocks[R];
      for (int r = 0; r < R; ++r) {
        __m512i bytes = LoadPart(rows + r * tile.row_bytes, size);
        HoldInRegister(&bytes);
        blocks[r] = Codec::MakeBlock(bytes);
      }
      AddFields<0>(blocks, q, stride, size, acc);
    }
    for (int i = 0; i < R * M; ++i) totals[i] = Codec::Total(acc[i]);
  }
};

// Sums of weight * q from the lanes of four sums of code * q.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE __m128i Finish4(const __m512i* totals, __m128i sums) {
  __m128i total = SumLanes4(totals[0], totals[1], totals[2], totals[3]);
  if (Codec::kSumFactor == 2) total = _mm_add_epi32(total, total);
  return _mm_sub_epi32(total, sums);
}

// Five accumulators for each of four rows would leave t5 without registers for its constants.
template <class Codec>
constexpr int kRowsAtOnce = Codec::kAccumulators > 4 ? 2 : 4;

// All rows of the tile times one row of x.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void MultiplyOneRow(const GemmTile& tile, const GemmInput& input,
                                                int64_t i, int32_t* out) {
  const int8_t* q = input.q + i * input.stride;
  const __m128i sums = _mm_set1_epi32(input.sums[i]);
  __m512i totals[4];
  int r = 0;
  for (; r + 4 <= tile.row_count; r += 4) {
    using Block = Rows<Codec, kRowsAtOnce<Codec>, 1>;
    Block::Run(tile, r, q, input.stride, totals);
    if (kRowsAtOnce<Codec> == 2) Block::Run(tile, r + 2, q, input.stride, totals + 2);
    _mm_store_si128(reinterpret_cast<__m128i*>(out + r), Finish4<Codec>(totals, sums));
  }
  for (int j = 1; j < 4; ++j) totals[j] = _mm512_setzero_si512();
  for (; r < tile.row_count; ++r) {
    Rows<Codec, 1, 1>::Run(tile, r, q, input.stride, totals);
    out[r] = _mm_cvtsi128_si32(Finish4<Codec>(totals, sums));
  }
}

// All rows of the tile times two rows of x: each mask serves two products.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void MultiplyTwoRows(const GemmTile& tile, const GemmInput& input,
                                                 int64_t i, int32_t* out) {
  const int8_t* q = input.q + i * input.stride;
  const int32_t first = input.sums[i];
  const int32_t second = input.sums[i + 1];
  __m512i totals[4];
  int r = 0;
  for (; r + 2 <= tile.row_count; r += 2) {
    Rows<Codec, 2, 2>::Run(tile, r, q, input.stride, totals);
    const __m128i all = Finish4<Codec>(totals, _mm_setr_epi32(first, first, second, second));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + r), all);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + kTileRows + r), _mm_srli_si128(all, 8));
  }
  if (r < tile.row_count) {
    totals[2] = totals[3] = _mm512_setzero_si512();
    Rows<Codec, 1, 2>::Run(tile, r, q, input.stride, totals);
    const __m128i all = Finish4<Codec>(totals, _mm_setr_epi32(first, second, 0, 0));
    out[r] = _mm_cvtsi128_si32(all);
    out[kTileRows + r] = _mm_extract_epi32(all, 1);
  }
}

template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyOneGroup(const GemmTile& tile, const GemmInput& input,
                                           int32_t* acc) {
  int64_t i = 0;
  for (; i + 2 <= input.m; i += 2) MultiplyTwoRows<Codec>(tile, input, i, acc + i * kTileRows);
  if (i < input.m) MultiplyOneRow<Codec>(tile, input, i, acc + i * kTileRows);
}

// 16 rows of W, one accumulator each. Recursion over the rows unrolls for certain: an accumulator
// that gcc finds indexed by a loop stays in memory.
template <int r>
struct Sixteen {
  using Next = Sixteen<r + 1>;

  static TFMOT_TERNARY_AVX512_INLINE void Clear(__m512i* acc) {
    if constexpr (r < kDecodedRows) {
      acc[r] = _mm512_setzero_si512();
      Next::Clear(acc);
    }
  }

  // One run of 64 decoded weights of each row.
  static TFMOT_TERNARY_AVX512_INLINE void AddDecoded(const uint8_t* codes, __m512i q,
                                                     __m512i* acc) {
    if constexpr (r < kDecodedRows) {
      DotBytes(Load(codes), q, &acc[r]);
      Next::AddDecoded(codes + kDecodedStride, q, acc);
    }
  }

  // Fields [f, end) of one block of each row; q: their runs of activations.
  template <class Codec, int f, int end>
  static TFMOT_TERNARY_AVX512_INLINE void AddFields(const typename Codec::Block& block,
                                                    const __m512i* q, __m512i* acc) {
    if constexpr (f < end) {
      DotBytes(Codec::template Digits<f>(block), *q, &acc[r]);
      AddFields<Codec, f + 1, end>(block, q + 1, acc);
    }
  }
  template <class Codec, int first, int end>
  static TFMOT_TERNARY_AVX512_INLINE void AddPacked(const uint8_t* const* rows, int64_t offset,
                                                    const __m512i* q, __m512i* acc) {
    if constexpr (r < kDecodedRows) {
      __m512i bytes = Load(rows[r] + offset);
      HoldInRegister(&bytes);
      AddFields<Codec, first, end>(Codec::MakeBlock(bytes), q, acc);
      Next::template AddPacked<Codec, first, end>(rows, offset, q, acc);
    }
  }
};

TFMOT_TERNARY_AVX512_INLINE __m512i SumQuarters4(const __m512i* v) {
  const __m512i ab =
      _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  const __m512i cd =
      _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

TFMOT_TERNARY_AVX512_INLINE __m512i SumNeighbours(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// Stores the sums of 16 accumulators, one for all lanes or, for groups of 32, one for lanes 0 to 7
// and one (only if it exists) for lanes 8 to 15. Returns the number of groups stored.
TFMOT_TERNARY_AVX512_INLINE int StoreGroups(const __m512i* acc, bool halves, bool second,
                                            const int32_t* sums, int32_t* out) {
  const __m512i front = SumNeighbours(SumQuarters4(acc), SumQuarters4(acc + 4));
  const __m512i back = SumNeighbours(SumQuarters4(acc + 8), SumQuarters4(acc + 12));
  const __m512i low = _mm512_shuffle_i32x4(front, back, 0x88);
  const __m512i high = _mm512_shuffle_i32x4(front, back, 0xdd);
  if (!halves) {
    const __m512i both = _mm512_add_epi32(low, high);
    _mm512_store_si512(out, _mm512_sub_epi32(both, _mm512_set1_epi32(sums[0])));
    return 1;
  }
  _mm512_store_si512(out, _mm512_sub_epi32(low, _mm512_set1_epi32(sums[0])));
  if (!second) return 1;
  _mm512_store_si512(out + kTileRows, _mm512_sub_epi32(high, _mm512_set1_epi32(sums[1])));
  return 2;
}

// The groups of 16 rows of decoded weights.
TFMOT_TERNARY_AVX512_INLINE void MultiplyDecoded(const uint8_t* codes, const int8_t* q,
                                                 int64_t group_size, int64_t count,
                                                 const int32_t* sums, int32_t* out) {
  const int64_t runs = group_size == 32 ? 1 : group_size / 64;
  for (int64_t begin = 0; begin < count;) {
    __m512i acc[kDecodedRows];
    Sixteen<0>::Clear(acc);
    for (int64_t run = 0; run < runs && begin < count; ++run, begin += 64) {
      Sixteen<0>::AddDecoded(codes + begin, Load(q + begin), acc);
    }
    const int stored = StoreGroups(acc, group_size == 32, begin - 32 < count, sums, out);
    sums += stored;
    out += stored * kTileRows;
  }
}

// The groups of kRuns fields each, from field `first` on, of one full block of 16 rows.
template <class Codec, int kRuns, int first>
TFMOT_TERNARY_AVX512_INLINE void MultiplyFields(const uint8_t* const* rows, int64_t offset,
                                                const int8_t* q, bool halves, const int32_t* sums,
                                                int32_t* out) {
  if constexpr (first < Codec::kFields) {
    __m512i activations[kRuns];
    for (int i = 0; i < kRuns; ++i) activations[i] = Load(q + i * kBlockBytes);
    __m512i acc[kDecodedRows];
    Sixteen<0>::Clear(acc);
    Sixteen<0>::AddPacked<Codec, first, first + kRuns>(rows, offset, activations, acc);
    const int stored = StoreGroups(acc, halves, true, sums, out);
    MultiplyFields<Codec, kRuns, first + kRuns>(rows, offset, q + kRuns * kBlockBytes, halves,
                                                sums + stored, out + stored * kTileRows);
  }
}

// Full blocks of formats whose blocks are whole groups (t2, b1), straight from the packed bytes.
template <class Codec, int kRuns>
TFMOT_TERNARY_AVX512_INLINE void MultiplyBlocks(const uint8_t* const* rows, int64_t blocks,
                                                const int8_t* q, int64_t group_size,
                                                const int32_t* sums, int32_t* out) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  const int64_t groups = kBlockWeights / group_size;
  for (int64_t block = 0; block < blocks; ++block) {
    MultiplyFields<Codec, kRuns, 0>(rows, block * kBlockBytes, q + block * kBlockWeights,
                                    group_size == 32, sums + block * groups,
                                    out + block * groups * kTileRows);
  }
}

template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyGroups(const GemmTile& tile, const GemmInput& input,
                                         int32_t* acc) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  constexpr bool kDirect = Codec::kFields != 5;
  const int64_t direct_weights = kDirect ? tile.k / kBlockWeights * kBlockWeights : 0;
  for (int first = 0; first < tile.row_count; first += kDecodedRows) {
    const int count = std::min(kDecodedRows, tile.row_count - first);
    const uint8_t* rows[kDecodedRows];  // rows that the tile lacks repeat the last one
    for (int r = 0; r < kDecodedRows; ++r) {
      rows[r] = tile.rows + (first + std::min(r, count - 1)) * tile.row_bytes;
    }
    if constexpr (kDirect) {
      const int64_t blocks = tile.k / kBlockWeights;
      for (int64_t i = 0; i < input.m; ++i) {
        const int8_t* q = input.q + i * input.stride;
        const int32_t* sums = input.sums + i * tile.groups;
        int32_t* out = acc + i * tile.groups * kTileRows + first;
        if (tile.group_size == 256) {
          MultiplyBlocks<Codec, 4>(rows, blocks, q, tile.group_size, sums, out);
        } else if (tile.group_size == 128) {
          MultiplyBlocks<Codec, 2>(rows, blocks, q, tile.group_size, sums, out);
        } else {
          MultiplyBlocks<Codec, 1>(rows, blocks, q, tile.group_size, sums, out);
        }
      }
    }
    for (int64_t begin = direct_weights; begin < tile.k; begin += kPieceWeights<Codec>) {
      const int64_t weights = std::min(kPieceWeights<Codec>, tile.k - begin);
      for (int r = 0; r < kDecodedRows; ++r) {
        DecodePiece<Codec>(rows[r] + begin / Codec::kFields, weights,
                           tile.scratch + r * kDecodedStride);
      }
      const int64_t g = begin / tile.group_size;
      for (int64_t i = 0; i < input.m; ++i) {
        MultiplyDecoded(tile.scratch, input.q + i * input.stride + begin, tile.group_size, weights,
                        input.sums + i * tile.groups + g,
                        acc + (i * tile.groups + g) * kTileRows + first);
      }
    }
  }
}

template <class Codec>
void Multiply(const GemmTile& tile, const GemmInput& input, int64_t /*group_begin*/,
              int64_t /*group_end*/, int32_t* acc) {
  if (tile.groups == 1) {
    MultiplyOneGroup<Codec>(tile, input, acc);
  } else {
    MultiplyGroups<Codec>(tile, input, acc);
  }
}

size_t ScratchBytes(int64_t /*k*/) { return kDecodedRows * kDecodedStride; }

}  // namespace
}  // namespace avx512

#define TFMOT_TERNARY_DEFINE(name, codec)                                                  \
  extern const GemmFunctions name;                                                         \
  const GemmFunctions name = {/*block_m=*/4, /*group_ranges=*/false, avx512::ScratchBytes, \
                              /*load=*/nullptr, avx512::Multiply<avx512::codec>};
TFMOT_TERNARY_DEFINE(T2DecodeAvx512Vnni, T2Codec)
TFMOT_TERNARY_DEFINE(T5DecodeAvx512Vnni, T5Codec)
TFMOT_TERNARY_DEFINE(B1DecodeAvx512Vnni, B1Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
