// Attention for vector units, written once over 16 lanes of float32. A file that wants it defines
//
//   TFMOT_TERNARY_ATTENTION_TARGET    the attribute of its instruction set
//
// includes this file, and instantiates attention_body::Attend<Isa>, where Isa has
//
//   Floats                            16 lanes
//   kRows, kColumns                   a tile of rows x columns (in Floats) whose sums fill the
//                                     registers; kNarrow: columns of tiles of one and two rows
//   Load (float, half, int8 code), Store, Zero, Broadcast, Fma, Add, Mul, Max, Largest, Sum
//   AddPower(x, s)                    x * 2^n, n in the low bits of s
//   KeepFrom(x, limit, v)             v, but 0 in the lanes where x < limit
//   Sums, kCodeRows, ZeroSums, AddProducts, Finish    products of int8 codes, see ScoreCodes
//
// A block of positions is scored for a tile of rows, becomes weights, and adds up its values, while
// it and the scores are in the caches near the core; no score reaches memory. Both products are
// sums of outer products: a value of each row, broadcast, times vectors along positions (keys) or
// dimensions (values).
#ifndef TFMOT_TERNARY_KERNELS_ATTENTION_BODY_H_
#define TFMOT_TERNARY_KERNELS_ATTENTION_BODY_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "custom_ops/kernels/attention.h"
#include "custom_ops/kernels/attention_tile.h"
#include "custom_ops/kernels/half.h"
#include "custom_ops/kernels/vector_exp.h"

namespace tfmot_ternary {
namespace attention_body {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Relative error below 4e-7.
TFMOT_TERNARY_ATTENTION_INLINE float Tanh(float x) {
  constexpr float kSmall = 0.3f;  // below it 1 - ... loses digits, and the series has them all
  const float size = VectorSelect(x < 0.0f, -x, x);
  const float large = 1.0f - 2.0f / (VectorExp(size + size) + 1.0f);
  const float square = x * x;
  float series = -1382.0f / 155925.0f;
  series = series * square + 62.0f / 2835.0f;
  series = series * square - 17.0f / 315.0f;
  series = series * square + 2.0f / 15.0f;
  series = series * square - 1.0f / 3.0f;
  series = x + x * (square * series);
  return VectorSelect(size < kSmall, series, VectorSelect(x < 0.0f, -large, large));
}

// One tile of rows against one block of positions.
struct Block {
  int64_t row;    // first of the tile, in the piece
  int64_t begin;  // first position
  int64_t count;  // positions
  int64_t vectors() const { return (count + kLanes - 1) / kLanes; }
};

template <class Isa, int R, int C, typename T>
TFMOT_TERNARY_ATTENTION_INLINE void ScoreFloats(const AttentionPiece& piece, const Block& block) {
  const AttentionCache& cache = *piece.cache;
  const int64_t dim = cache.shape().head_dim;
  const T* keys = cache.Keys<T>(piece.head) + block.begin / kLanes * cache.key_block();
  const T* values = cache.Values<T>(piece.head) + block.begin * cache.padded_dim();
  for (int64_t d = 0; d < dim; d += PreparedRows::kChunk) {
    const float* rows =
        piece.rows.scaled + (d / PreparedRows::kChunk * kAttentionRows + block.row) * kStride;
    Product<Isa, R, C>(rows, keys + d * kLanes, kLanes, cache.key_block(),
                       std::min(PreparedRows::kChunk, dim - d), values, d > 0, piece.scratch,
                       kStride, block.vectors());
  }
}

// Keys are codes + 128 in groups of four for 16 positions; the integer sums are those of the
// portable kernel, and so are the float32 products that follow.
template <class Isa, int R>
TFMOT_TERNARY_ATTENTION_INLINE void ScoreCodes(const AttentionPiece& piece, const Block& block,
                                               int64_t r0) {
  const AttentionCache& cache = *piece.cache;
  const PreparedRows& rows = piece.rows;
  const int8_t* codes = rows.codes + (block.row + r0) * rows.code_stride;
  for (int64_t j = 0; j < block.vectors(); ++j) {
    const int64_t position = block.begin + j * kLanes;
    const uint8_t* keys = cache.Keys<uint8_t>(piece.head) + position / kLanes * cache.key_block();
    const int8_t* ahead = cache.Values<int8_t>(piece.head) + position * cache.padded_dim();
    typename Isa::Sums sums[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sums[r] = Isa::ZeroSums();
    for (int64_t d = 0; d < rows.code_stride; d += 4) {
      if (R < Isa::kRows) __builtin_prefetch(ahead + d * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        Isa::AddProducts(keys + d * kLanes, codes + r * rows.code_stride + d, &sums[r]);
      }
    }
    const typename Isa::Floats scales = Isa::Load(cache.KeyScales(piece.head) + position);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const int64_t row = block.row + r0 + r;
      const typename Isa::Floats scaled =
          Isa::Mul(Isa::Finish(sums[r], rows.corrections[row]), Isa::Broadcast(rows.scales[row]));
      Isa::Store(piece.scratch + (r0 + r) * kStride + j * kLanes, Isa::Mul(scaled, scales));
    }
  }
}

// e^x for x <= 0: relative error below 2e-7, 0 below -87 (where float32 nears its end), NaN stays.
// VectorExp's steps with fused multiplications and without what x > 0 needs.
template <class Isa>
TFMOT_TERNARY_ATTENTION_INLINE typename Isa::Floats Exp(typename Isa::Floats x) {
  using Floats = typename Isa::Floats;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: leaves no bits below one
  const Floats lowest = Isa::Broadcast(-87.0f);
  const Floats clamped = Isa::Max(lowest, x);  // this order keeps a NaN
  const Floats shifted = Isa::Fma(clamped, Isa::Broadcast(1.44269504f), Isa::Broadcast(kMagic));
  const Floats n = Isa::Add(shifted, Isa::Broadcast(-kMagic));
  Floats r = Isa::Fma(n, Isa::Broadcast(-0.693359375f), clamped);
  r = Isa::Fma(n, Isa::Broadcast(2.12194440e-4f), r);
  Floats p = Isa::Broadcast(1.38144672e-3f);
  for (const float c : {8.36878084e-3f, 4.16683927e-2f, 1.66665196e-1f, 4.99999940e-1f}) {
    p = Isa::Fma(p, r, Isa::Broadcast(c));
  }
  p = Isa::Add(Isa::Fma(p, Isa::Mul(r, r), r), Isa::Broadcast(1.0f));
  return Isa::KeepFrom(x, lowest, Isa::AddPower(p, shifted));
}

// Scores of one row become weights exp(score - largest); what is in `out` is scaled to fit.
template <class Isa>
TFMOT_TERNARY_ATTENTION_INLINE void Weigh(const AttentionPiece& piece, const Block& block,
                                          int64_t r) {
  const AttentionCache& cache = *piece.cache;
  const AttentionQuery& query = *piece.query;
  const int64_t row = block.row + r;
  const int64_t step = (piece.row_begin + row) / GroupOf(cache, query);
  const int64_t padded = block.vectors() * kLanes;
  const int64_t visible =
      std::max<int64_t>(0, std::min(block.count, VisibleEnd(cache, query, step) - block.begin));
  float* scores = piece.scratch + r * kStride;
  if (query.soft_cap > 0.0f) {
    const float cap = query.soft_cap;
    for (int64_t i = 0; i < padded; ++i) {
      scores[i] = cap * Tanh(scores[i] / cap);
    }
  }
  if (query.mask != nullptr) {
    const uint8_t* mask = query.mask + step * cache.shape().length + block.begin;
    for (int64_t i = 0; i < visible; ++i) {
      scores[i] = VectorSelect(mask[i] != 0, scores[i], kNothing);
    }
  }
  for (int64_t i = visible; i < padded; ++i) scores[i] = kNothing;

  typename Isa::Floats maxima = Isa::Broadcast(piece.largest[row]);
  for (int64_t i = 0; i < padded; i += kLanes) maxima = Isa::Max(maxima, Isa::Load(scores + i));
  const float largest = Isa::Largest(maxima);
  if (largest == kNothing) {
    for (int64_t i = 0; i < padded; ++i) scores[i] = 0.0f;
    return;
  }
  const typename Isa::Floats minus = Isa::Broadcast(-largest);
  typename Isa::Floats total = Isa::Zero();
  for (int64_t i = 0; i < padded; i += kLanes) {
    const typename Isa::Floats weight = Exp<Isa>(Isa::Add(Isa::Load(scores + i), minus));
    total = Isa::Add(total, weight);
    Isa::Store(scores + i, weight);
  }
  const float kept = VectorExp(piece.largest[row] - largest);
  piece.sums[row] = piece.sums[row] * kept + Isa::Sum(total);
  if (cache.shape().type == CacheType::kInt8) {
    const float* scales = cache.ValueScales(piece.head) + block.begin;
    for (int64_t i = 0; i < padded; ++i) scores[i] *= scales[i];
  }
  if (kept != 1.0f) {
    float* out = piece.out + row * cache.padded_dim();
    for (int64_t d = 0; d < cache.padded_dim(); ++d) out[d] *= kept;
  }
  piece.largest[row] = largest;
}

template <class Isa, int R, int C, typename T>
TFMOT_TERNARY_ATTENTION_INLINE void AddValues(const AttentionPiece& piece, const Block& block) {
  const int64_t padded = piece.cache->padded_dim();
  const T* values = piece.cache->Values<T>(piece.head) + block.begin * padded;
  const bool last = block.begin + block.count >= piece.key_end;
  const T* ahead = !last ? piece.cache->Keys<T>(piece.head) +
                               (block.begin + block.count) / kLanes * piece.cache->key_block()
                         : values;
  Product<Isa, R, C>(piece.scratch, values, padded, kLanes, block.count, ahead, true,
                     piece.out + block.row * padded, padded, padded / kLanes);
}

template <class Isa, int R, int C>
TFMOT_TERNARY_ATTENTION_TARGET void AttendTile(const AttentionPiece& piece, const Block& block) {
  switch (piece.cache->shape().type) {
    case CacheType::kFloat32:
      ScoreFloats<Isa, R, C, float>(piece, block);
      break;
    case CacheType::kFloat16:
      ScoreFloats<Isa, R, C, uint16_t>(piece, block);
      break;
    case CacheType::kInt8: {
      constexpr int kStep = R < Isa::kCodeRows ? R : Isa::kCodeRows;
      static_assert(R % kStep == 0, "tiles of rows divide");
      for (int64_t r = 0; r < R; r += kStep) ScoreCodes<Isa, kStep>(piece, block, r);
      break;
    }
  }
  for (int64_t r = 0; r < R; ++r) Weigh<Isa>(piece, block, r);
  switch (piece.cache->shape().type) {
    case CacheType::kFloat32:
      return AddValues<Isa, R, C, float>(piece, block);
    case CacheType::kFloat16:
      return AddValues<Isa, R, C, uint16_t>(piece, block);
    case CacheType::kInt8:
      return AddValues<Isa, R, C, int8_t>(piece, block);
  }
}

// Cuts the block to the positions that some row of the tile sees; false: none.
TFMOT_TERNARY_ATTENTION_INLINE bool Cut(const AttentionPiece& piece, int64_t rows, Block* block) {
  const int64_t group = GroupOf(*piece.cache, *piece.query);
  const int64_t first = (piece.row_begin + block->row) / group;
  const int64_t last = (piece.row_begin + block->row + rows - 1) / group;
  const int64_t end = VisibleEnd(*piece.cache, *piece.query, last);
  block->count = std::min(block->count, end - block->begin);
  if (block->count <= 0) return false;
  if (piece.query->mask == nullptr) return true;
  const int64_t length = piece.cache->shape().length;
  uint8_t seen = 0;
  for (int64_t step = first; step <= last && seen == 0; ++step) {
    const uint8_t* mask = piece.query->mask + step * length + block->begin;
    for (int64_t i = 0; i < block->count; ++i) seen |= mask[i];
  }
  return seen != 0;
}

template <class Isa, int R, int C>
TFMOT_TERNARY_ATTENTION_INLINE void AttendRows(const AttentionPiece& piece, Block block,
                                               int64_t rows, int64_t* row) {
  for (; *row + R <= rows; *row += R) {
    Block tile = block;
    tile.row = *row;
    if (Cut(piece, R, &tile)) AttendTile<Isa, R, C>(piece, tile);
  }
}

template <class Isa>
TFMOT_TERNARY_ATTENTION_TARGET void Attend(const AttentionPiece& piece) {
  const int64_t rows = piece.row_end - piece.row_begin;
  const int64_t padded = piece.cache->padded_dim();
  std::fill_n(piece.largest, rows, kNothing);
  std::fill_n(piece.sums, rows, 0.0f);
  std::fill_n(piece.out, rows * padded, 0.0f);
  // Keys and values of a block stay in the second level of memory while the tiles pass over them.
  const int64_t size = padded <= 128 ? 256 : 128;
  for (int64_t begin = piece.key_begin; begin < piece.key_end; begin += size) {
    const Block block = {0, begin, std::min(size, piece.key_end - begin)};
    int64_t row = 0;
    AttendRows<Isa, Isa::kRows, Isa::kColumns>(piece, block, rows, &row);
    if (Isa::kRows > 8) AttendRows<Isa, 8, Isa::kColumns>(piece, block, rows, &row);
    AttendRows<Isa, 4, Isa::kColumns>(piece, block, rows, &row);
    AttendRows<Isa, 2, Isa::kNarrow>(piece, block, rows, &row);
    AttendRows<Isa, 1, Isa::kNarrow>(piece, block, rows, &row);
  }
}

template <class Isa>
TFMOT_TERNARY_ATTENTION_TARGET void ToHalf(const float* x, int64_t count, uint16_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Isa::StoreHalf(out + i, Isa::Load(x + i));
  for (; i < count; ++i) out[i] = HalfFromFloat(x[i]);
}

}  // namespace
}  // namespace attention_body
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ATTENTION_BODY_H_
