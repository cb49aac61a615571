// ARM64 kernels with SDOT (Cortex-A55, A76 and later, Apple's from the A12 on).
#if defined(__aarch64__)

#include <algorithm>

#if !defined(__clang__)
// gcc 12 moves loads ahead of inline assembly until the accumulators no longer fit the registers.
#pragma GCC optimize("no-schedule-insns")
#endif

#if defined(__clang__)
#define TFMOT_TERNARY_NEON_TARGET __attribute__((target("dotprod")))
#else
#define TFMOT_TERNARY_NEON_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#include "custom_ops/kernels/neon_decode_body.h"
#include "custom_ops/kernels/neon_tile.h"

namespace tfmot_ternary {
namespace neon {
namespace {

// acc += the dot products of four signed bytes. Inline assembly because arm_neon.h has the
// intrinsics only for whole files of that target with some compilers (clang before 16).
TFMOT_TERNARY_NEON_BODY void DotBytes(int8x16_t a, int8x16_t b, int32x4_t* acc) {
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(*acc) : "w"(a), "w"(b));
}
// The same with four bytes of b for all lanes.
template <int lane>
TFMOT_TERNARY_NEON_BODY void DotLane(int8x16_t a, int8x16_t b, int32x4_t* acc) {
  __asm__("sdot %0.4s, %1.16b, %2.4b[%c3]" : "+w"(*acc) : "w"(a), "w"(b), "i"(lane));
}

struct SignedDot {
  static constexpr bool kWide = true;
  using Lanes = int32x4_t;

  static TFMOT_TERNARY_NEON_BODY Lanes Zero() { return vdupq_n_s32(0); }
  template <class Codec>
  static TFMOT_TERNARY_NEON_BODY void Add(int8x16_t digits, int8x16_t q, Lanes* lanes) {
    DotBytes(digits, q, lanes);
  }
  template <class Codec>
  static TFMOT_TERNARY_NEON_BODY int32x4_t Wide(Lanes lanes) {
    return lanes;
  }
};

constexpr int kStep = 4;  // a vector of the tile is four weights of four rows
constexpr int kHalfRows = kTileRows / 2;
constexpr int kMaxM = 4;  // times 16 rows of W: 16 accumulators, 4 vectors of q, 4 of the tile

template <int M, int lane>
TFMOT_TERNARY_NEON_BODY void AddLane(const int8_t* tile, const int8x16_t* q, int32x4_t (*acc)[4]) {
  int8x16_t digits[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) digits[r] = vld1q_s8(tile + lane * kTileRows * kStep + r * 16);
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) DotLane<lane>(digits[r], q[i], &acc[i][r]);
  }
}

// M rows of x times 16 rows of W over weights [begin, end), 16 at a time.
template <class Codec, int M>
TFMOT_TERNARY_NEON_TARGET void MultiplyBlock(const int8_t* tile, const int8_t* q, int64_t stride,
                                             int64_t begin, int64_t end, const int32_t* sums,
                                             int64_t sums_stride, int32_t* out,
                                             int64_t out_stride) {
  int32x4_t acc[M][4];
#pragma GCC unroll 16
  for (int i = 0; i < 4 * M; ++i) acc[i / 4][i % 4] = vdupq_n_s32(0);
  const int8_t* weights = tile + TileOffset<kStep>(begin, 0);
  const int8_t* q_end = q + end;
  for (q += begin; q < q_end; q += kVectorBytes, weights += kVectorBytes * kTileRows) {
    int8x16_t activations[M];
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) activations[i] = vld1q_s8(q + i * stride);
    AddLane<M, 0>(weights, activations, acc);
    AddLane<M, 1>(weights, activations, acc);
    AddLane<M, 2>(weights, activations, acc);
    AddLane<M, 3>(weights, activations, acc);
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
    const int32x4_t sum = vdupq_n_s32(sums[i * sums_stride]);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      vst1q_s32(out + i * out_stride + r * 4, SumWeights<Codec>(acc[i][r], sum));
    }
  }
}

template <class Codec>
void Prefill(const GemmTile& tile, const GemmInput& input, int64_t group_begin, int64_t group_end,
             int32_t* acc) {
  const int8_t* digits = reinterpret_cast<const int8_t*>(tile.scratch);
  const int64_t range = group_end - group_begin;
  const int64_t blocks = (input.m + kMaxM - 1) / kMaxM;
  for (int64_t b = 0; b < blocks; ++b) {
    // Blocks of nearly equal size: a small one would wait for the tile.
    const int64_t i = b * input.m / blocks;
    const int64_t m = (b + 1) * input.m / blocks - i;
    const auto block = m == 4   ? MultiplyBlock<Codec, 4>
                       : m == 3 ? MultiplyBlock<Codec, 3>
                       : m == 2 ? MultiplyBlock<Codec, 2>
                                : MultiplyBlock<Codec, 1>;
    for (int64_t g = group_begin; g < group_end; ++g) {
      const int64_t begin = g * tile.group_size;
      const int64_t end = std::min(tile.k, begin + tile.group_size);
      for (int first = 0; first < tile.row_count; first += kHalfRows) {
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

#define TFMOT_TERNARY_DEFINE(name, codec, decode_codec)                                         \
  extern const GemmFunctions name##DecodeDotProd, name##PrefillDotProd;                         \
  const GemmFunctions name##DecodeDotProd = {/*block_m=*/4,                                     \
                                             /*group_ranges=*/false,                            \
                                             neon::DecodeScratchBytes,                          \
                                             /*load=*/nullptr,                                  \
                                             neon::Decode<neon::decode_codec, neon::SignedDot>, \
                                             /*multiply_scaled=*/nullptr,                       \
                                             neon::codec::kOffset != 0};                        \
  const GemmFunctions name##PrefillDotProd = {/*block_m=*/24,                                   \
                                              /*group_ranges=*/true,                            \
                                              neon::TileBytes,                                  \
                                              neon::LoadTile<neon::codec, neon::kStep>,         \
                                              neon::Prefill<neon::codec>,                       \
                                              /*multiply_scaled=*/nullptr,                      \
                                              neon::codec::kOffset != 0};
TFMOT_TERNARY_DEFINE(T2, T2Codec, T2MaskedCodec)
TFMOT_TERNARY_DEFINE(T5, T5Codec, T5Codec)
TFMOT_TERNARY_DEFINE(B1, B1Codec, B1Codec)
TFMOT_TERNARY_DEFINE(I8, I8Codec, I8Codec)
TFMOT_TERNARY_DEFINE(I4, I4Codec, I4Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__aarch64__)
