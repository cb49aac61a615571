// The products of attention_body.h: sums of outer products, a tile of them in registers.
#ifndef TFMOT_TERNARY_KERNELS_ATTENTION_TILE_H_
#define TFMOT_TERNARY_KERNELS_ATTENTION_TILE_H_

#include <cstdint>

#include "custom_ops/kernels/attention.h"

#define TFMOT_TERNARY_ATTENTION_INLINE \
  inline __attribute__((always_inline)) TFMOT_TERNARY_ATTENTION_TARGET

namespace tfmot_ternary {
namespace attention_body {
namespace {

constexpr int64_t kLanes = AttentionCache::kLanes;
constexpr int64_t kStride = PreparedRows::kStride;

// c[R][16 C] (+)= a[R][k] b[k][16 C]: column vector j of b begins at b + j * next, its rows are
// `step` elements apart. Meanwhile as much memory as b has comes nearer from `ahead` on: what is
// read next, whose order the hardware does not foresee.
template <class Isa, int R, int C, typename T>
TFMOT_TERNARY_ATTENTION_INLINE void Tile(const float* a, const T* b, int64_t step, int64_t next,
                                         int64_t k, const T* ahead, bool add, float* c,
                                         int64_t c_stride) {
  typename Isa::Floats sums[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      sums[r][j] = add ? Isa::Load(c + r * c_stride + j * kLanes) : Isa::Zero();
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    typename Isa::Floats columns[C];
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) {
      columns[j] = Isa::Load(b + i * step + j * next);
      if (R < Isa::kRows) __builtin_prefetch(ahead + (i * C + j) * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename Isa::Floats row = Isa::Broadcast(a[r * kStride + i]);
#pragma GCC unroll 16
      for (int j = 0; j < C; ++j) sums[r][j] = Isa::Fma(row, columns[j], sums[r][j]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < C; ++j) Isa::Store(c + r * c_stride + j * kLanes, sums[r][j]);
  }
}

// The same for any number of columns (of 16).
template <class Isa, int R, int C, typename T>
TFMOT_TERNARY_ATTENTION_INLINE void Product(const float* a, const T* b, int64_t step, int64_t next,
                                            int64_t k, const T* ahead, bool add, float* c,
                                            int64_t c_stride, int64_t columns) {
  int64_t j = 0;
  for (; j + C <= columns; j += C) {
    Tile<Isa, R, C>(a, b + j * next, step, next, k, ahead + j * k * kLanes, add, c + j * kLanes,
                    c_stride);
  }
  for (; j < columns; ++j) {
    Tile<Isa, R, 1>(a, b + j * next, step, next, k, ahead + j * k * kLanes, add, c + j * kLanes,
                    c_stride);
  }
}

}  // namespace
}  // namespace attention_body
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ATTENTION_TILE_H_
