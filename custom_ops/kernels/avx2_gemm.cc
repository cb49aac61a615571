// AVX2 kernels. Products of unsigned codes (0, 1, 2) and signed bytes are added in 16 bits:
// vpmaddubsw gives at most 2 * 2 * 128 = 512 in magnitude, so that 63 of them fit.
#if defined(__x86_64__)

#include <algorithm>

#include "custom_ops/kernels/avx2.h"

namespace tfmot_ternary {
namespace avx2 {
namespace {

constexpr int64_t kMaxAddends = 63;

TFMOT_TERNARY_AVX2_INLINE __m256i Widen(__m256i sums16) {
  return _mm256_madd_epi16(sums16, _mm256_set1_epi16(1));
}

TFMOT_TERNARY_AVX2_INLINE int32_t SumLanes(__m256i v) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

// Sum of codes * q over `count` weights, at most a piece.
TFMOT_TERNARY_AVX2_INLINE int32_t Dot(const uint8_t* codes, const int8_t* q, int64_t count) {
  static_assert(kDecodedBytes / 32 <= kMaxAddends, "16 bits hold the sums of a piece");
  __m256i sums = _mm256_setzero_si256();
  __m256i more = sums;
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(Load(codes + i), Load(q + i)));
    more = _mm256_add_epi16(more, _mm256_maddubs_epi16(Load(codes + i + 32), Load(q + i + 32)));
  }
  for (; i < count; i += 32) {  // q is zero beyond the row
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(Load(codes + i), Load(q + i)));
  }
  return SumLanes(Widen(_mm256_add_epi16(sums, more)));
}

// Few rows of x: each row of W is decoded piece by piece into the scratch.
template <class Codec>
TFMOT_TERNARY_AVX2 void MultiplyRows(const GemmTile& tile, const GemmInput& input,
                                     int64_t /*group_begin*/, int64_t /*group_end*/, int32_t* acc) {
  for (int r = 0; r < tile.row_count; ++r) {
    const uint8_t* row = tile.rows + r * tile.row_bytes;
    for (int64_t begin = 0; begin < tile.k; begin += kPieceWeights<Codec>) {
      const int64_t end = std::min(tile.k, begin + kPieceWeights<Codec>);
      DecodePiece<Codec>(row + begin / Codec::kFields, end - begin, tile.scratch);
      for (int64_t i = 0; i < input.m; ++i) {
        const int8_t* q = input.q + i * input.stride + begin;
        const int32_t* sums = input.sums + i * tile.groups;
        int32_t* out = acc + i * tile.groups * kTileRows + r;
        if (tile.groups == 1) {
          *out = Dot(tile.scratch, q, end - begin) + (begin == 0 ? -*sums : *out);
          continue;
        }
        for (int64_t j = begin; j < end; j += tile.group_size) {
          const int64_t count = std::min(tile.group_size, end - j);
          const int64_t g = j / tile.group_size;
          out[g * kTileRows] = Dot(tile.scratch + (j - begin), q + (j - begin), count) - sums[g];
        }
      }
    }
  }
}

size_t RowsScratchBytes(int64_t /*k*/) { return kDecodedBytes; }

// 8 rows of 32 bytes, kDecodedBytes apart -> 8 vectors of four bytes of every row, kTileRows * 4
// apart.
TFMOT_TERNARY_AVX2_INLINE void Transpose(const uint8_t* codes, uint8_t* out) {
  __m256i a[8], b[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) a[r] = Load(codes + r * kDecodedBytes);
#pragma GCC unroll 4
  for (int r = 0; r < 8; r += 2) {
    b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
  }
  // a[4 j + c]: in 128-bit lane l, dword 4 l + c of the rows 4 j to 4 j + 3.
#pragma GCC unroll 2
  for (int r = 0; r < 8; r += 4) {
    a[r] = _mm256_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm256_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm256_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm256_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    Store(out + c * kTileRows * 4, _mm256_permute2x128_si256(a[c], a[4 + c], 0x20));
    Store(out + (4 + c) * kTileRows * 4, _mm256_permute2x128_si256(a[c], a[4 + c], 0x31));
  }
}

// Many rows of x: the tile in the order [k / 4][32][4], a vector is four weights of eight rows.
template <class Codec>
TFMOT_TERNARY_AVX2 void LoadTile(const GemmTile& tile) {
  alignas(64) uint8_t codes[8 * kDecodedBytes];
  for (int first = 0; first < tile.row_count; first += 8) {
    for (int64_t begin = 0; begin < tile.k; begin += kPieceWeights<Codec>) {
      const int64_t count = std::min(kPieceWeights<Codec>, tile.k - begin);
      for (int r = 0; r < 8; ++r) {
        // Rows that the tile lacks repeat the last one.
        const uint8_t* row = tile.rows + std::min(first + r, tile.row_count - 1) * tile.row_bytes;
        DecodePiece<Codec>(row + begin / Codec::kFields, count, codes + r * kDecodedBytes);
      }
      for (int64_t i = 0; i < count; i += 32) {
        Transpose(codes + i, tile.scratch + (begin + i) * kTileRows + first * 4);
      }
    }
  }
}

size_t TileScratchBytes(int64_t k) { return static_cast<size_t>((k + 31) / 32 * 32 * kTileRows); }

// M <= 4 rows of x times 16 rows of W over dwords [begin, end) of k.
template <int M>
TFMOT_TERNARY_AVX2 void MultiplyBlock(const uint8_t* tile, const int8_t* q, int64_t stride,
                                      int64_t begin, int64_t end, const int32_t* sums,
                                      int64_t sums_stride, int32_t* out, int64_t out_stride) {
  for (int i = 0; i < M; ++i) {
    const __m256i start = _mm256_set1_epi32(-sums[i * sums_stride]);
    Store(out + i * out_stride, start);
    Store(out + i * out_stride + 8, start);
  }
  for (int64_t d = begin; d < end;) {
    __m256i front[4], back[4];
    for (int i = 0; i < 4; ++i) front[i] = back[i] = _mm256_setzero_si256();
    const int64_t stop = std::min(end, d + kMaxAddends);
    for (; d < stop; ++d) {
      const __m256i codes_front = Load(tile + d * kTileRows * 4);
      const __m256i codes_back = Load(tile + d * kTileRows * 4 + 32);
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        int32_t four;
        std::memcpy(&four, q + i * stride + d * 4, sizeof(four));
        const __m256i activations = _mm256_set1_epi32(four);
        front[i] = _mm256_add_epi16(front[i], _mm256_maddubs_epi16(codes_front, activations));
        back[i] = _mm256_add_epi16(back[i], _mm256_maddubs_epi16(codes_back, activations));
      }
    }
    for (int i = 0; i < M; ++i) {
      int32_t* sums32 = out + i * out_stride;
      Store(sums32, _mm256_add_epi32(Load(sums32), Widen(front[i])));
      Store(sums32 + 8, _mm256_add_epi32(Load(sums32 + 8), Widen(back[i])));
    }
  }
}

TFMOT_TERNARY_AVX2 void MultiplyTile(const GemmTile& tile, const GemmInput& input,
                                     int64_t group_begin, int64_t group_end, int32_t* acc) {
  const int64_t range = group_end - group_begin;
  for (int64_t i = 0; i < input.m; i += 4) {
    const int64_t m = std::min<int64_t>(4, input.m - i);
    const int8_t* q = input.q + i * input.stride;
    for (int64_t g = group_begin; g < group_end; ++g) {
      const int64_t begin = g * tile.group_size / 4;
      const int64_t end = (std::min(tile.k, (g + 1) * tile.group_size) + 3) / 4;
      const int32_t* sums = input.sums + i * tile.groups + g;
      int32_t* out = acc + (i * range + g - group_begin) * kTileRows;
      for (int first = 0; first < tile.row_count; first += 16) {
        const uint8_t* codes = tile.scratch + first * 4;
        const auto block = m == 4   ? MultiplyBlock<4>
                           : m == 3 ? MultiplyBlock<3>
                           : m == 2 ? MultiplyBlock<2>
                                    : MultiplyBlock<1>;
        block(codes, q, input.stride, begin, end, sums, tile.groups, out + first,
              range * kTileRows);
      }
    }
  }
}

}  // namespace
}  // namespace avx2

#define TFMOT_TERNARY_DEFINE(name, codec)                                                       \
  extern const GemmFunctions name##DecodeAvx2, name##PrefillAvx2;                               \
  const GemmFunctions name##DecodeAvx2 = {/*block_m=*/4, /*group_ranges=*/false,                \
                                          avx2::RowsScratchBytes, /*load=*/nullptr,             \
                                          avx2::MultiplyRows<avx2::codec>};                     \
  const GemmFunctions name##PrefillAvx2 = {/*block_m=*/24, /*group_ranges=*/true,               \
                                           avx2::TileScratchBytes, avx2::LoadTile<avx2::codec>, \
                                           avx2::MultiplyTile};
TFMOT_TERNARY_DEFINE(T2, T2Codec)
TFMOT_TERNARY_DEFINE(T5, T5Codec)
TFMOT_TERNARY_DEFINE(B1, B1Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
