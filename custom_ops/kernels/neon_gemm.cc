// ARM64 kernels for CPUs without SDOT (Cortex-A53, A72): products of bytes in 16 bits.
#if defined(__aarch64__)

#include <algorithm>

#define TFMOT_TERNARY_NEON_TARGET
#include "custom_ops/kernels/neon_decode_body.h"
#include "custom_ops/kernels/neon_tile.h"

namespace tfmot_ternary {
namespace neon {
namespace {

constexpr int kBlockRows = 4;  // rows of W, and the most rows of x, of a block of sums
constexpr int kStep = kVectorBytes;

// M rows of x times 4 rows of W over weights [begin, end), 16 at a time; both ends are multiples of
// 16, or the end is that of the row.
template <class Codec, class Dot, int M>
void MultiplyBlock(const int8_t* tile, const int8_t* q, int64_t stride, int64_t begin, int64_t end,
                   const int32_t* sums, int64_t sums_stride, int32_t* out, int64_t out_stride) {
  constexpr int64_t kSpan = Dot::template kVectors<Codec> * kVectorBytes;
  int32x4_t totals[M];
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) totals[j] = vdupq_n_s32(0);
  for (int64_t i = begin; i < end;) {
    typename Dot::Lanes lanes[M][kBlockRows];
#pragma GCC unroll 4
    for (int j = 0; j < M; ++j) {
#pragma GCC unroll 4
      for (int r = 0; r < kBlockRows; ++r) lanes[j][r] = Dot::Zero();
    }
    const int64_t stop = std::min(end, i + kSpan);
    for (; i < stop; i += kStep) {
      int8x16_t digits[kBlockRows];
#pragma GCC unroll 4
      for (int r = 0; r < kBlockRows; ++r) {
        digits[r] = vld1q_s8(tile + TileOffset<kStep>(i, r));
      }
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        const int8x16_t activations = vld1q_s8(q + j * stride + i);
#pragma GCC unroll 4
        for (int r = 0; r < kBlockRows; ++r) {
          Dot::template Add<Codec>(digits[r], activations, &lanes[j][r]);
        }
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < M; ++j) {
      int32x4_t wide[kBlockRows];
#pragma GCC unroll 4
      for (int r = 0; r < kBlockRows; ++r) wide[r] = Dot::template Wide<Codec>(lanes[j][r]);
      totals[j] = vaddq_s32(totals[j], SumLanes4(wide[0], wide[1], wide[2], wide[3]));
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) {
    vst1q_s32(out + j * out_stride,
              SumWeights<Codec>(totals[j], vdupq_n_s32(sums[j * sums_stride])));
  }
}

template <class Codec, class Dot>
void Prefill(const GemmTile& tile, const GemmInput& input, int64_t group_begin, int64_t group_end,
             int32_t* acc) {
  const int8_t* digits = reinterpret_cast<const int8_t*>(tile.scratch);
  const int64_t range = group_end - group_begin;
  for (int64_t i = 0; i < input.m; i += kBlockRows) {
    const int64_t m = std::min<int64_t>(kBlockRows, input.m - i);
    const auto block = m == 4   ? MultiplyBlock<Codec, Dot, 4>
                       : m == 3 ? MultiplyBlock<Codec, Dot, 3>
                       : m == 2 ? MultiplyBlock<Codec, Dot, 2>
                                : MultiplyBlock<Codec, Dot, 1>;
    for (int64_t g = group_begin; g < group_end; ++g) {
      const int64_t begin = g * tile.group_size;
      const int64_t end = std::min(tile.k, begin + tile.group_size);
      for (int first = 0; first < tile.row_count; first += kBlockRows) {
        block(digits + TileOffset<kStep>(0, first), input.q + i * input.stride, input.stride, begin,
              end, input.sums + i * tile.groups + g, tile.groups,
              acc + (i * range + g - group_begin) * kTileRows + first, range * kTileRows);
      }
    }
  }
}

size_t TileBytes(int64_t k) { return static_cast<size_t>(TileWeights(k) * kTileRows); }

}  // namespace
}  // namespace neon

#define TFMOT_TERNARY_DEFINE(name, codec, dot)                                              \
  extern const GemmFunctions name##DecodeNeon, name##PrefillNeon;                           \
  const GemmFunctions name##DecodeNeon = {/*block_m=*/4,                                    \
                                          /*group_ranges=*/false,                           \
                                          neon::DecodeScratchBytes,                         \
                                          /*load=*/nullptr,                                 \
                                          neon::Decode<neon::codec, neon::dot>,             \
                                          /*multiply_scaled=*/nullptr,                      \
                                          neon::codec::kOffset != 0};                       \
  const GemmFunctions name##PrefillNeon = {/*block_m=*/24,                                  \
                                           /*group_ranges=*/true,                           \
                                           neon::TileBytes,                                 \
                                           neon::LoadTile<neon::codec, neon::kVectorBytes>, \
                                           neon::Prefill<neon::codec, neon::dot>,           \
                                           /*multiply_scaled=*/nullptr,                     \
                                           neon::codec::kOffset != 0};
TFMOT_TERNARY_DEFINE(T2, T2Codec, Widening)
TFMOT_TERNARY_DEFINE(T5, T5Codec, Widening)
TFMOT_TERNARY_DEFINE(B1, B1Codec, Widening)
TFMOT_TERNARY_DEFINE(I8, I8Codec, WideningPairs)
TFMOT_TERNARY_DEFINE(I4, I4Codec, Widening)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__aarch64__)
