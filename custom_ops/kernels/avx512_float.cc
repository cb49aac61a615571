// AVX-512: products of float32 rows with packed weights, read in place.
#if defined(__x86_64__)

#include "custom_ops/kernels/avx512_float.h"

#include <algorithm>

#include "custom_ops/kernels/float_kernel.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

// R rows of W by M rows of x, a vector of 16 chains each.
//
// Recursion over i unrolls for certain: what gcc finds indexed by a loop stays in memory.

template <int i, int M>
TFMOT_TERNARY_AVX512_INLINE void AddProducts(__m512 w, const float* x, int64_t k, __m512* acc) {
  if constexpr (i < M) {
    // The products of x with -1, 0, 1 are exact, so that a fused addition rounds as a separate one.
    acc[i] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + i * k), acc[i]);
    AddProducts<i + 1, M>(w, x, k, acc);
  }
}

template <int r, int R, int M>
struct FloatRows {
  using Next = FloatRows<r + 1, R, M>;

  static TFMOT_TERNARY_AVX512_INLINE void Clear(__m512 (&acc)[R][M]) {
    if constexpr (r < R) {
      for (int i = 0; i < M; ++i) acc[r][i] = _mm512_setzero_ps();
      Next::Clear(acc);
    }
  }
  template <class Source>
  static TFMOT_TERNARY_AVX512_INLINE void Index(const Source* from, __m512i (&index)[R][kChunks]) {
    if constexpr (r < R) {
      index[r][0] = Chunk<0>(from[r]);
      index[r][1] = Chunk<1>(from[r]);
      index[r][2] = Chunk<2>(from[r]);
      index[r][3] = Chunk<3>(from[r]);
      Next::Index(from, index);
    }
  }
  static TFMOT_TERNARY_AVX512_INLINE void NextNibble(__m512i (&index)[R][kChunks]) {
    if constexpr (r < R) {
      index[r][0] = _mm512_srli_epi32(index[r][0], 4);
      index[r][1] = _mm512_srli_epi32(index[r][1], 4);
      index[r][2] = _mm512_srli_epi32(index[r][2], 4);
      index[r][3] = _mm512_srli_epi32(index[r][3], 4);
      Next::NextNibble(index);
    }
  }
  template <int c>
  static TFMOT_TERNARY_AVX512_INLINE void Add(__m512 table, const __m512i (&index)[R][kChunks],
                                              const float* x, int64_t k, __m512 (&acc)[R][M]) {
    if constexpr (r < R) {
      AddProducts<0, M>(_mm512_permutexvar_ps(index[r][c], table), x + 16 * c, k, acc[r]);
      Next::template Add<c>(table, index, x, k, acc);
    }
  }
};

// The tree of Dot in row_body.h.
TFMOT_TERNARY_AVX512_INLINE float SumChains(__m512 chains) {
  const __m256 eight =
      _mm256_add_ps(_mm512_castps512_ps256(chains), _mm512_extractf32x8_ps(chains, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

template <class Codec, int R, int M>
class FloatBlock {
  using Floats = FloatCodec<Codec>;
  using Rows = FloatRows<0, R, M>;

 public:
  static TFMOT_TERNARY_AVX512 void Multiply(const GemmTile& tile, int first, const float* scales,
                                            int64_t scale_stride, const float* x, float* sums) {
    const uint8_t* bytes[R];
    const float* row_scales[R];
    for (int r = 0; r < R; ++r) {  // where the tile ends, its last row again
      const int row = std::min(first + r, tile.row_count - 1);
      bytes[r] = tile.rows + row * tile.row_bytes;
      row_scales[r] = scales + row * scale_stride;
    }
    for (int i = 0; i < M; ++i) {
      for (int r = 0; r < R; ++r) sums[i * kTileRows + first + r] = 0.0f;
    }
    Position at = {x, 0, std::min(tile.k, tile.group_size)};
    __m512 acc[R][M];
    Rows::Clear(acc);
    const int64_t whole = tile.k / Floats::kBlockWeights * Floats::kBlockWeights;
    while (at.weight < whole) {
      typename Nibbles<Codec>::Source from[R];
      for (int r = 0; r < R; ++r) from[r] = Nibbles<Codec>::Of(bytes[r]).fields;
      __m512i index[R][kChunks];
      Rows::Index(from, index);
      AddNibble<0>(tile, row_scales, index, &at, acc, sums + first);
      Rows::NextNibble(index);
      AddNibble<0>(tile, row_scales, index, &at, acc, sums + first);
      if constexpr (Floats::kHasTop) {
        for (int r = 0; r < R; ++r) {
          from[r] = Nibbles<Codec>::Of(bytes[r]).top;
        }
        Rows::Index(from, index);
        AddField(Floats::Table(0), tile, row_scales, index, &at, acc, sums + first);
      }
      for (int r = 0; r < R; ++r) bytes[r] += kBlockBytes;
    }
    if (at.weight < tile.k) AddTail(tile, bytes, row_scales, &at, acc, sums + first);
  }

 private:
  struct Position {
    const float* x;
    int64_t weight;
    int64_t group_end;
  };

  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE void AddNibble(const GemmTile& tile,
                                                    const float* const* scales,
                                                    const __m512i (&index)[R][kChunks],
                                                    Position* at, __m512 (&acc)[R][M],
                                                    float* sums) {
    if constexpr (f < Floats::kFields) {
      AddField(Floats::Table(f), tile, scales, index, at, acc, sums);
      AddNibble<f + 1>(tile, scales, index, at, acc, sums);
    }
  }

  // The 64 weights of a field.
  static TFMOT_TERNARY_AVX512_INLINE void AddField(__m512 table, const GemmTile& tile,
                                                   const float* const* scales,
                                                   const __m512i (&index)[R][kChunks], Position* at,
                                                   __m512 (&acc)[R][M], float* sums) {
    Rows::template Add<0>(table, index, at->x, tile.k, acc);
    Rows::template Add<1>(table, index, at->x, tile.k, acc);
    Advance(tile, 32, scales, at, acc, sums);
    Rows::template Add<2>(table, index, at->x - 32, tile.k, acc);
    Rows::template Add<3>(table, index, at->x - 32, tile.k, acc);
    Advance(tile, 32, scales, at, acc, sums);
  }

  // Moves on by `count` weights; where that ends a group, adds it to the sums.
  static TFMOT_TERNARY_AVX512_INLINE void Advance(const GemmTile& tile, int64_t count,
                                                  const float* const* scales, Position* at,
                                                  __m512 (&acc)[R][M], float* sums) {
    at->x += count;
    at->weight += count;
    if (__builtin_expect(at->weight != at->group_end, 1)) return;
    EndGroup<0>((at->group_end - 1) / tile.group_size, scales, acc, sums);
    at->group_end = std::min(tile.k, at->group_end + tile.group_size);
  }

  template <int j>
  static TFMOT_TERNARY_AVX512_INLINE void EndGroup(int64_t group, const float* const* scales,
                                                   __m512 (&acc)[R][M], float* sums) {
    if constexpr (j < R * M) {
      constexpr int r = j / M;
      constexpr int i = j % M;
      sums[i * kTileRows + r] += scales[r][group] * SumChains(acc[r][i]);
      acc[r][i] = _mm512_setzero_ps();
      EndGroup<j + 1>(group, scales, acc, sums);
    }
  }

  // The last, short block: unpacked to bytes, then 16 weights at a time.
  static TFMOT_TERNARY_AVX512_INLINE void AddTail(const GemmTile& tile, const uint8_t* const* bytes,
                                                  const float* const* scales, Position* at,
                                                  __m512 (&acc)[R][M], float* sums) {
    alignas(64) uint8_t codes[R][kMaxBlockWeights + kBlockBytes];
    for (int r = 0; r < R; ++r) DecodePiece<Codec>(bytes[r], tile.k - at->weight, codes[r]);
    for (int64_t done = 0; at->weight < tile.k; done += 16) {
      const int64_t count = std::min<int64_t>(16, tile.k - at->weight);
      AddMasked<0>(codes, done, FirstLanes(count), at->x, tile.k, acc);
      Advance(tile, count, scales, at, acc, sums);
    }
  }

  template <int j>
  static TFMOT_TERNARY_AVX512_INLINE void AddMasked(
      const uint8_t (&codes)[R][kMaxBlockWeights + kBlockBytes], int64_t done, __mmask16 mask,
      const float* x, int64_t k, __m512 (&acc)[R][M]) {
    if constexpr (j < R * M) {
      constexpr int r = j / M;
      constexpr int i = j % M;
      acc[r][i] = _mm512_mask3_fmadd_ps(WeightsOf(codes[r] + done),
                                        _mm512_maskz_loadu_ps(mask, x + i * k), acc[r][i], mask);
      AddMasked<j + 1>(codes, done, mask, x, k, acc);
    }
  }
};

// All rows of the tile by M rows of x.
template <class Codec, int R, int M>
void MultiplyRows(const GemmTile& tile, const float* scales, int64_t scale_stride, const float* x,
                  float* sums) {
  for (int first = 0; first < tile.row_count; first += R) {
    FloatBlock<Codec, R, M>::Multiply(tile, first, scales, scale_stride, x, sums);
  }
}

// One row of x meets four rows of W at a time, so that enough sums are under way; more rows of x
// meet two, so that a decoded vector serves up to eight of them.
template <class Codec>
void Multiply(const GemmTile& tile, const float* scales, int64_t scale_stride, const float* x,
              int64_t m, float* sums) {
  int64_t i = 0;
  for (; i + 8 <= m; i += 8) {
    MultiplyRows<Codec, 2, 8>(tile, scales, scale_stride, x + i * tile.k, sums + i * kTileRows);
  }
  for (; i + 4 <= m; i += 4) {
    MultiplyRows<Codec, 2, 4>(tile, scales, scale_stride, x + i * tile.k, sums + i * kTileRows);
  }
  for (; i < m; ++i) {
    MultiplyRows<Codec, 4, 1>(tile, scales, scale_stride, x + i * tile.k, sums + i * kTileRows);
  }
}

}  // namespace
}  // namespace avx512

#define TFMOT_TERNARY_DEFINE(name, codec) \
  extern const FloatFunctions name;       \
  const FloatFunctions name = {avx512::Dequantize<avx512::codec>, avx512::Multiply<avx512::codec>};
TFMOT_TERNARY_DEFINE(T2FloatAvx512, T2Codec)
TFMOT_TERNARY_DEFINE(T5FloatAvx512, T5Codec)
TFMOT_TERNARY_DEFINE(B1FloatAvx512, B1Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
