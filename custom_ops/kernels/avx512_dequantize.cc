// AVX-512: rows of packed weights to scaled float32, the scale being in the table of floats.
#if defined(__x86_64__)

#include "custom_ops/kernels/avx512_float.h"

namespace tfmot_ternary {
namespace avx512 {
namespace {

// The 16 weights of field f that `index` holds, scaled, and of the fields after it, up to field
// `end`; a field that begins a nibble after the first moves `index` on.
template <class Codec, bool kGrouped, int f, int end>
TFMOT_TERNARY_AVX512_INLINE void WriteFields(__m512i index, const __m512* tables,
                                             const float* scales, int shift, int64_t begin,
                                             float* out) {
  constexpr int kNibbleFields = FloatCodec<Codec>::kFields;
  if constexpr (f < end) {
    __m512 table = tables[f % kNibbleFields];
    if constexpr (kGrouped) {
      table = _mm512_mul_ps(table, _mm512_set1_ps(scales[(begin + f * kBlockBytes) >> shift]));
    }
    _mm512_storeu_ps(out + f * kBlockBytes, _mm512_permutexvar_ps(index, table));
    if constexpr (f + 1 == kNibbleFields) index = _mm512_srli_epi32(index, 4);
    WriteFields<Codec, kGrouped, f + 1, end>(index, tables, scales, shift, begin, out);
  }
}

template <class Codec, bool kGrouped, int c>
TFMOT_TERNARY_AVX512_INLINE void WriteChunks(const Nibbles<Codec>& block, const __m512* tables,
                                             const float* scales, int shift, int64_t begin,
                                             float* out) {
  if constexpr (c < kChunks) {
    const int64_t at = begin + 16 * c;
    WriteFields<Codec, kGrouped, 0, 2 * FloatCodec<Codec>::kFields>(Chunk<c>(block.fields), tables,
                                                                    scales, shift, at, out + at);
    if constexpr (FloatCodec<Codec>::kHasTop) {
      WriteFields<Codec, kGrouped, 4, 5>(Chunk<c>(block.top), tables, scales, shift, at, out + at);
    }
    WriteChunks<Codec, kGrouped, c + 1>(block, tables, scales, shift, begin, out);
  }
}

template <class Codec, bool kGrouped>
TFMOT_TERNARY_AVX512 void WriteRow(const uint8_t* row, int64_t k, const float* scales, int shift,
                                   float* out) {
  using Floats = FloatCodec<Codec>;
  __m512 tables[Floats::kFields];
  for (int f = 0; f < Floats::kFields; ++f) {
    tables[f] = Floats::Table(f);
    if (!kGrouped) tables[f] = _mm512_mul_ps(tables[f], _mm512_set1_ps(*scales));
  }
  int64_t begin = 0;
  for (; begin + Floats::kBlockWeights <= k; begin += Floats::kBlockWeights, row += kBlockBytes) {
    WriteChunks<Codec, kGrouped, 0>(Nibbles<Codec>::Of(row), tables, scales, shift, begin, out);
  }
  if (begin == k) return;
  // A short block: unpacked to bytes first. 16 weights lie in one group.
  alignas(64) uint8_t codes[kMaxBlockWeights + kBlockBytes];
  DecodePiece<Codec>(row, k - begin, codes);
  for (int64_t i = 0; begin + i < k; i += 16) {
    const __m512 scale = _mm512_set1_ps(scales[kGrouped ? (begin + i) >> shift : 0]);
    const __m512 value = _mm512_mul_ps(WeightsOf(codes + i), scale);
    _mm512_mask_storeu_ps(out + begin + i, FirstLanes(k - begin - i), value);
  }
}

}  // namespace

template <class Codec>
void Dequantize(const uint8_t* row, int64_t k, const float* scales, int64_t group_size,
                float* out) {
  if (group_size == 0) {
    WriteRow<Codec, false>(row, k, scales, 0, out);
  } else {
    WriteRow<Codec, true>(row, k, scales, __builtin_ctzll(static_cast<uint64_t>(group_size)), out);
  }
}

#define TFMOT_TERNARY_INSTANTIATE(codec)                                              \
  template void Dequantize<codec>(const uint8_t* row, int64_t k, const float* scales, \
                                  int64_t group_size, float* out);
TFMOT_TERNARY_INSTANTIATE(T2Codec)
TFMOT_TERNARY_INSTANTIATE(T5Codec)
TFMOT_TERNARY_INSTANTIATE(B1Codec)
#undef TFMOT_TERNARY_INSTANTIATE

}  // namespace avx512
}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
