// AVX-512 VNNI kernels for few rows of x: weights are read once, in place.
#if defined(__x86_64__)

#include <algorithm>

#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

// R rows of W times M rows of x, R * M <= 4, one group. Each packed block meets kFields runs of q.
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

  // Results: acc[i * kTileRows + r].
  static TFMOT_TERNARY_AVX512_INLINE void Run(const uint8_t* rows, int64_t row_bytes, int64_t k,
                                              const GemmInput& input, int64_t first_x,
                                              int32_t* out) {
    constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
    __m512i acc[4][Codec::kAccumulators];
    for (auto& row : acc) {
      for (__m512i& lane : row) lane = _mm512_setzero_si512();
    }
    const int64_t stride = input.stride;
    const int8_t* q = input.q + first_x * stride;
    int64_t rest = k;
    for (; rest >= kBlockWeights; rest -= kBlockWeights) {
      typename Codec::Block blocks[R];
      for (int r = 0; r < R; ++r) {
        __m512i bytes = Load(rows + r * row_bytes);
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
        __m512i bytes = LoadPart(rows + r * row_bytes, size);
        HoldInRegister(&bytes);
        blocks[r] = Codec::MakeBlock(bytes);
      }
      AddFields<0>(blocks, q, stride, size, acc);
    }
    alignas(16) int32_t totals[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(totals),
                    SumLanes4(Codec::Total(acc[0]), Codec::Total(acc[1]), Codec::Total(acc[2]),
                              Codec::Total(acc[3])));
    for (int i = 0; i < M; ++i) {
      const int32_t sum = input.sums[first_x + i];
      for (int r = 0; r < R; ++r) {
        out[i * kTileRows + r] = Codec::kSumFactor * totals[i * R + r] - sum;
      }
    }
  }
};

template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyOneGroup(const GemmTile& tile, const GemmInput& input,
                                           int32_t* acc) {
  int64_t i = 0;
  for (; i + 2 <= input.m; i += 2) {
    int32_t* out = acc + i * kTileRows;
    int r = 0;
    for (; r + 2 <= tile.row_count; r += 2) {
      Rows<Codec, 2, 2>::Run(tile.rows + r * tile.row_bytes, tile.row_bytes, tile.k, input, i,
                             out + r);
    }
    if (r < tile.row_count) {
      Rows<Codec, 1, 2>::Run(tile.rows + r * tile.row_bytes, tile.row_bytes, tile.k, input, i,
                             out + r);
    }
  }
  if (i < input.m) {
    // Five accumulators for each of four rows would leave t5 without registers for its constants.
    constexpr int kRows = Codec::kAccumulators > 4 ? 2 : 4;
    int32_t* out = acc + i * kTileRows;
    int r = 0;
    for (; r + kRows <= tile.row_count; r += kRows) {
      Rows<Codec, kRows, 1>::Run(tile.rows + r * tile.row_bytes, tile.row_bytes, tile.k, input, i,
                                 out + r);
    }
    for (; r < tile.row_count; ++r) {
      Rows<Codec, 1, 1>::Run(tile.rows + r * tile.row_bytes, tile.row_bytes, tile.k, input, i,
                             out + r);
    }
  }
}

// Lane sums of 16 vectors: *low over lanes 0 to 7, *high over lanes 8 to 15.
TFMOT_TERNARY_AVX512_INLINE void SumHalves16(const __m512i* v, __m512i* low, __m512i* high) {
  __m512i quads[4];
  for (int i = 0; i < 4; ++i) {
    const __m512i* a = v + 4 * i;
    const __m512i ab =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[0], a[1]), _mm512_unpackhi_epi32(a[0], a[1]));
    const __m512i cd =
        _mm512_add_epi32(_mm512_unpacklo_epi32(a[2], a[3]), _mm512_unpackhi_epi32(a[2], a[3]));
    quads[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  }
  // Neighbouring 128-bit lanes, then one result for each half.
  const __m512i front = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[0], quads[1], 0x88),
                                         _mm512_shuffle_i32x4(quads[0], quads[1], 0xdd));
  const __m512i back = _mm512_add_epi32(_mm512_shuffle_i32x4(quads[2], quads[3], 0x88),
                                        _mm512_shuffle_i32x4(quads[2], quads[3], 0xdd));
  *low = _mm512_shuffle_i32x4(front, back, 0x88);
  *high = _mm512_shuffle_i32x4(front, back, 0xdd);
}

// Adds up 16 decoded rows over the groups [g, end) that start at `codes`.
TFMOT_TERNARY_AVX512_INLINE void MultiplyPiece(const uint8_t* codes, const int8_t* q,
                                               int64_t group_size, int64_t count,
                                               const int32_t* sums, int32_t* out) {
  const int64_t chunks = group_size == 32 ? 1 : group_size / 64;
  for (int64_t begin = 0; begin < count;) {
    __m512i acc[kDecodedRows];
    for (__m512i& lanes : acc) lanes = _mm512_setzero_si512();
    for (int64_t chunk = 0; chunk < chunks && begin < count; ++chunk, begin += 64) {
      const __m512i activations = Load(q + begin);
      for (int r = 0; r < kDecodedRows; ++r) {
        DotBytes(Load(codes + r * kDecodedStride + begin), activations, &acc[r]);
      }
    }
    __m512i low, high;
    SumHalves16(acc, &low, &high);
    if (group_size == 32) {
      _mm512_store_si512(out, _mm512_sub_epi32(low, _mm512_set1_epi32(*sums)));
      if (begin - 32 < count) {
        out += kTileRows;
        ++sums;
        _mm512_store_si512(out, _mm512_sub_epi32(high, _mm512_set1_epi32(*sums)));
      }
    } else {
      _mm512_store_si512(out,
                         _mm512_sub_epi32(_mm512_add_epi32(low, high), _mm512_set1_epi32(*sums)));
    }
    out += kTileRows;
    ++sums;
  }
}

template <class Codec>
TFMOT_TERNARY_AVX512 void MultiplyGroups(const GemmTile& tile, const GemmInput& input,
                                         int32_t* acc) {
  for (int first = 0; first < tile.row_count; first += kDecodedRows) {
    const int rows = std::min(kDecodedRows, tile.row_count - first);
    for (int64_t begin = 0; begin < tile.k; begin += kPieceWeights<Codec>) {
      const int64_t count = std::min(kPieceWeights<Codec>, tile.k - begin);
      const uint8_t* packed =
          tile.rows + first * tile.row_bytes + begin / (kBlockBytes * Codec::kFields) * kBlockBytes;
      // Rows that the tile lacks keep what the scratch holds: their sums are not used.
      for (int r = 0; r < rows; ++r) {
        DecodePiece<Codec>(packed + r * tile.row_bytes, count, tile.scratch + r * kDecodedStride);
      }
      const int64_t g = begin / tile.group_size;
      for (int64_t i = 0; i < input.m; ++i) {
        MultiplyPiece(tile.scratch, input.q + i * input.stride + begin, tile.group_size, count,
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
