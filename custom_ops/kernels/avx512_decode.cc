// AVX-512 VNNI kernels for few rows of x: weights are read once, in place.
#if defined(__x86_64__)

#include <cstring>
#include <type_traits>

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

TFMOT_TERNARY_AVX512_INLINE __m512i Broadcast4(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, sizeof(four));
  return _mm512_set1_epi32(four);
}

// The sums of one field over half of a full block, dwords [d, end); two accumulators, so that no
// product waits for the one before it.
template <class Codec, int f, int d, int end>
TFMOT_TERNARY_AVX512_INLINE void AddColumns(const __m512i* columns, const int8_t* q, __m512i* even,
                                            __m512i* odd) {
  if constexpr (d < end) {
    const typename Codec::Block block = Codec::MakeBlock(columns[d]);
    DotBytes(Codec::template Field<f>(block), Broadcast4(q + d * 4), d % 2 == 0 ? even : odd);
    AddColumns<Codec, f, d + 1, end>(columns, q, even, odd);
  }
}

// t5, columns [d, end): adds the products of field 4 and leaves the pairs of the other fields, as
// t2 has them, in the column.
template <int d, int end>
TFMOT_TERNARY_AVX512_INLINE void SplitColumns(__m512i* columns, const int8_t* q, __m512i* even,
                                              __m512i* odd) {
  if constexpr (d < end) {
    const T5Codec::Block block = T5Codec::MakeBlock(columns[d]);
    DotBytes(T5Codec::Digits<4>(block), Broadcast4(q + d * 4), d % 2 == 0 ? even : odd);
    columns[d] = block.pairs;
    SplitColumns<d + 1, end>(columns, q, even, odd);
  }
}

// halves[f]: the sums of code * q over the first and the last 32 weights of field f.
template <class Codec, int f>
TFMOT_TERNARY_AVX512_INLINE void SumFields(const __m512i* columns, const int8_t* q,
                                           __m512i (*halves)[2]) {
  if constexpr (f < (Codec::kFields == 5 ? 4 : Codec::kFields)) {
    // The pairs of t5 are masked like t2.
    using Fields = typename std::conditional<Codec::kFields == 5, T2Codec, Codec>::type;
    __m512i sums[4];
    for (__m512i& sum : sums) sum = _mm512_setzero_si512();
    AddColumns<Fields, f, 0, 8>(columns, q + f * kBlockBytes, &sums[0], &sums[1]);
    AddColumns<Fields, f, 8, 16>(columns, q + f * kBlockBytes, &sums[2], &sums[3]);
    halves[f][0] = _mm512_srai_epi32(_mm512_add_epi32(sums[0], sums[1]), Codec::Shift(f));
    halves[f][1] = _mm512_srai_epi32(_mm512_add_epi32(sums[2], sums[3]), Codec::Shift(f));
    SumFields<Codec, f + 1>(columns, q, halves);
  }
}

template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void SumBlock(__m512i* columns, const int8_t* q, __m512i (*halves)[2]) {
  if constexpr (Codec::kFields == 5) {
    __m512i sums[4];
    for (__m512i& sum : sums) sum = _mm512_setzero_si512();
    SplitColumns<0, 8>(columns, q + 4 * kBlockBytes, &sums[0], &sums[1]);
    SplitColumns<8, 16>(columns, q + 4 * kBlockBytes, &sums[2], &sums[3]);
    halves[4][0] = _mm512_add_epi32(sums[0], sums[1]);
    halves[4][1] = _mm512_add_epi32(sums[2], sums[3]);
  }
  SumFields<Codec, 0>(columns, q, halves);
}

// Group sums of 16 rows, in the order of the row.
struct GroupWriter {
  const int32_t* sums;  // of q over the groups
  int32_t* out;
  int64_t group_size;
  int64_t filled = 0;  // weights in `pending`
  __m512i pending;     // the sum of (weight + 1) * q over the group that is under way

  TFMOT_TERNARY_AVX512_INLINE void Store(__m512i total) {
    _mm512_store_si512(out, _mm512_sub_epi32(total, _mm512_set1_epi32(*sums)));
    out += kTileRows;
    ++sums;
  }
  // Adds `weights` of them, all of one group.
  TFMOT_TERNARY_AVX512_INLINE void Add(__m512i total, int64_t weights) {
    pending = filled == 0 ? total : _mm512_add_epi32(pending, total);
    filled += weights;
    if (filled == group_size) Flush();
  }
  TFMOT_TERNARY_AVX512_INLINE void Flush() {
    if (filled > 0) Store(pending);
    filled = 0;
  }
};

// 16 rows of W from `rows` on times one row of x, several groups. The packed bytes are turned in
// registers, so that a vector holds four bytes of each row and a sum needs no other lane: the size
// of the groups costs nothing.
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void MultiplyGroupsOneRow(const GemmTile& tile,
                                                      const uint8_t* const* rows, const int8_t* q,
                                                      GroupWriter writer) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  int64_t begin = 0;
  for (; begin + kBlockWeights <= tile.k; begin += kBlockWeights) {
    __m512i columns[16], halves[Codec::kFields][2];
    LoadColumns(rows, begin / Codec::kFields, kBlockBytes, columns);
    SumBlock<Codec>(columns, q + begin, halves);
    for (const auto& field : halves) {
      for (int h = 0; h < 2; ++h) {
        const __m512i doubled = _mm512_add_epi32(field[h], field[h]);
        writer.Add(Codec::kSumFactor == 2 ? doubled : field[h], 32);
      }
    }
  }
  const int64_t rest = tile.k - begin;
  if (rest > 0) {
    const int64_t size = ShortBlockBytes(Codec::kFormat, rest);
    __m512i columns[16];
    LoadColumns(rows, begin / Codec::kFields, size, columns);
    for (int64_t d = 0; d < size / 4; ++d) {
      StoreFields<Codec, 0>(Codec::MakeBlock(columns[d]), size * 16, tile.scratch + d * 64);
    }
    for (int64_t i = 0; i < rest; i += 4) {
      __m512i sum = _mm512_setzero_si512();
      DotBytes(_mm512_load_si512(tile.scratch + i * 16), Broadcast4(q + begin + i), &sum);
      writer.Add(sum, 4);
    }
  }
  writer.Flush();
}

template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyGroups(const GemmTile& tile, const GemmInput& input,
                                         int32_t* acc) {
  for (int first = 0; first < tile.row_count; first += 16) {
    const uint8_t* rows[16];
    PointToRows(tile, first, rows);
    for (int64_t i = 0; i < input.m; ++i) {
      GroupWriter writer;
      writer.sums = input.sums + i * tile.groups;
      writer.out = acc + i * tile.groups * kTileRows + first;
      writer.group_size = tile.group_size;
      writer.pending = _mm512_setzero_si512();
      MultiplyGroupsOneRow<Codec>(tile, rows, input.q + i * input.stride, writer);
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

// A short block, decoded: at most 8 * 60 weights of 16 rows.
size_t ScratchBytes(int64_t /*k*/) { return 8 * kBlockBytes * 16; }

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
