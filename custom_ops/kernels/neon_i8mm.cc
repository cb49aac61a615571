// ARM64 kernels with SMMLA (int8 matrix multiply: Cortex-A510, A710, X2, Neoverse V1, Apple's from
// the M2 on) for several rows of x. It multiplies two rows of eight bytes by two rows of eight:
// twice the products of SDOT where there are two rows of x. For one row half of them would be lost,
// and USDOT saves no instruction of the decode kernels of neon_dotprod.cc: those serve.
#if defined(__aarch64__)

#include <algorithm>

#if !defined(__clang__)
// gcc 12 moves loads ahead of inline assembly until the accumulators no longer fit the registers.
#pragma GCC optimize("no-schedule-insns")
#endif

#include "custom_ops/kernels/neon_tile.h"

#if defined(__clang__)
#define TFMOT_TERNARY_I8MM __attribute__((target("i8mm")))
#else
#define TFMOT_TERNARY_I8MM __attribute__((target("arch=armv8.2-a+i8mm")))
#endif
#define TFMOT_TERNARY_I8MM_INLINE inline __attribute__((always_inline)) TFMOT_TERNARY_I8MM

namespace tfmot_ternary {
namespace neon {
namespace {

// acc[2 i + j] += the dot product of row i of a and row j of b. Inline assembly for the reason of
// DotBytes (neon_dotprod.cc).
TFMOT_TERNARY_I8MM_INLINE void MultiplyPairs(int8x16_t a, int8x16_t b, int32x4_t* acc) {
  __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(*acc) : "w"(a), "w"(b));
}

constexpr int kStep = 8;      // a vector of the tile is eight weights of two rows
constexpr int kMaxPairs = 4;  // of rows of x, times four of W: 16 accumulators
constexpr int kBlockRows = 8;

// Two rows of x, eight bytes of the one and eight of the other, into vectors pairs * 16 bytes
// apart.
void PackPair(const int8_t* first, const int8_t* second, int64_t count, int pairs, int8_t* out) {
  for (int64_t i = 0; i < count; i += kVectorBytes) {
    const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(first + i));
    const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(second + i));
    vst1q_s8(out, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
    vst1q_s8(out + pairs * kVectorBytes, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    out += 2 * pairs * kVectorBytes;
  }
}

// The sums of the first or the second row of x with eight rows of W.
template <class Codec, bool kSecond>
TFMOT_TERNARY_I8MM_INLINE void StoreRow(const int32x4_t* acc, const int32_t* sums, int32_t* out) {
  const int32x4_t sum = vdupq_n_s32(*sums);
#pragma GCC unroll 2
  for (int r = 0; r < 4; r += 2) {
    const int64x2_t a = vreinterpretq_s64_s32(acc[r]);
    const int64x2_t b = vreinterpretq_s64_s32(acc[r + 1]);
    const int64x2_t four = kSecond ? vzip2q_s64(a, b) : vzip1q_s64(a, b);
    vst1q_s32(out + 2 * r, SumWeights<Codec>(vreinterpretq_s32_s64(four), sum));
  }
}

// P pairs of rows of x times four pairs of rows of W, `count` weights. q: packed.
template <class Codec, int P>
TFMOT_TERNARY_I8MM void MultiplyBlock(const int8_t* tile, const int8_t* q, int64_t count, int64_t m,
                                      const int32_t* sums, int64_t sums_stride, int32_t* out,
                                      int64_t out_stride) {
  int32x4_t acc[P][4];
#pragma GCC unroll 16
  for (int i = 0; i < 4 * P; ++i) acc[i / 4][i % 4] = vdupq_n_s32(0);
  for (int64_t k = 0; k < count; k += kStep) {
    int8x16_t digits[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) digits[r] = vld1q_s8(tile + r * kVectorBytes);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const int8x16_t activations = vld1q_s8(q + p * kVectorBytes);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) MultiplyPairs(activations, digits[r], &acc[p][r]);
    }
    tile += kStep * kTileRows;
    q += P * kVectorBytes;
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    StoreRow<Codec, false>(acc[p], sums, out);
    if (2 * p + 1 < m) StoreRow<Codec, true>(acc[p], sums + sums_stride, out + out_stride);
    sums += 2 * sums_stride;
    out += 2 * out_stride;
  }
}

template <class Codec>
void Prefill(const GemmTile& tile, const GemmInput& input, int64_t group_begin, int64_t group_end,
             int32_t* acc) {
  const int8_t* digits = reinterpret_cast<const int8_t*>(tile.scratch);
  int8_t* packed = reinterpret_cast<int8_t*>(tile.scratch) + TileWeights(tile.k) * kTileRows;
  const int64_t range = group_end - group_begin;
  const int64_t begin = group_begin * tile.group_size;
  const int64_t count = std::min(tile.k, group_end * tile.group_size) - begin;
  const int64_t all_pairs = (input.m + 1) / 2;
  const int64_t blocks = (all_pairs + kMaxPairs - 1) / kMaxPairs;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first_pair = b * all_pairs / blocks;
    const int pairs = static_cast<int>((b + 1) * all_pairs / blocks - first_pair);
    const int64_t i = 2 * first_pair;
    const int64_t m = std::min<int64_t>(2 * pairs, input.m - i);
    const int8_t* q = input.q + i * input.stride + begin;
    for (int p = 0; p < pairs; ++p) {
      const int8_t* second = q + std::min<int64_t>(2 * p + 1, m - 1) * input.stride;
      PackPair(q + 2 * p * input.stride, second, count, pairs, packed + p * kVectorBytes);
    }
    const auto block = pairs == 4   ? MultiplyBlock<Codec, 4>
                       : pairs == 3 ? MultiplyBlock<Codec, 3>
                       : pairs == 2 ? MultiplyBlock<Codec, 2>
                                    : MultiplyBlock<Codec, 1>;
    for (int64_t g = group_begin; g < group_end; ++g) {
      const int64_t at = g * tile.group_size - begin;
      const int64_t size = std::min(tile.group_size, tile.k - g * tile.group_size);
      for (int first = 0; first < tile.row_count; first += kBlockRows) {
        block(digits + TileOffset<kStep>(begin + at, first), packed + at * 2 * pairs, size, m,
              input.sums + i * tile.groups + g, tile.groups,
              acc + (i * range + g - group_begin) * kTileRows + first, range * kTileRows);
      }
    }
  }
}

// The tile, and a block of rows of x.
size_t TileBytes(int64_t k) {
  return static_cast<size_t>(TileWeights(k) * (kTileRows + 2 * kMaxPairs));
}

}  // namespace
}  // namespace neon

#define TFMOT_TERNARY_DEFINE(name, codec)                                            \
  extern const GemmFunctions name##PrefillI8mm;                                      \
  const GemmFunctions name##PrefillI8mm = {/*block_m=*/24,                           \
                                           /*group_ranges=*/true,                    \
                                           neon::TileBytes,                          \
                                           neon::LoadTile<neon::codec, neon::kStep>, \
                                           neon::Prefill<neon::codec>,               \
                                           /*multiply_scaled=*/nullptr,              \
                                           neon::codec::kOffset != 0};
TFMOT_TERNARY_DEFINE(T2, T2Codec)
TFMOT_TERNARY_DEFINE(T5, T5Codec)
TFMOT_TERNARY_DEFINE(B1, B1Codec)
TFMOT_TERNARY_DEFINE(I8, I8Codec)
TFMOT_TERNARY_DEFINE(I4, I4Codec)
#undef TFMOT_TERNARY_DEFINE

}  // namespace tfmot_ternary

#endif  // defined(__aarch64__)
