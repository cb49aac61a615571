// AVX-512 building blocks: packed weights to float32, in registers. A vector of 16 packed bytes,
// one in each 32-bit lane, indexes a table of 16 floats with its low four bits: vpermps gives the
// weights of one field, and one shift by four serves all fields of a nibble.
#ifndef TFMOT_TERNARY_KERNELS_AVX512_FLOAT_H_
#define TFMOT_TERNARY_KERNELS_AVX512_FLOAT_H_

#include <cstdint>

#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace avx512 {

constexpr int kChunks = kBlockBytes / 16;

// What the codecs of avx512.h lack: how many fields a nibble of a byte holds, and their tables.
template <class Codec>
struct FloatCodec {
  static constexpr bool kBinary = Codec::kFormat == Format::kB1;
  static constexpr bool kHasTop = Codec::kFormat == Format::kT5;
  static constexpr int kBits = kBinary ? 1 : 2;
  static constexpr int kFields = 4 / kBits;
  static constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;

  static TFMOT_TERNARY_AVX512_INLINE __m512 Table(int field) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i digits = _mm512_and_si512(_mm512_srli_epi32(lanes, kBits * field),
                                            _mm512_set1_epi32((1 << kBits) - 1));
    const __m512 values = _mm512_cvtepi32_ps(digits);
    const __m512 doubled = kBinary ? _mm512_add_ps(values, values) : values;
    return _mm512_sub_ps(doubled, _mm512_set1_ps(1.0f));
  }
};

TFMOT_TERNARY_AVX512_INLINE __m512i Widen(const uint8_t* bytes) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
}

// Bytes 16 c to 16 c + 15 of a block, one in the low byte of each lane. What the other bytes hold
// does not matter: an index is four bits.
template <int c>
TFMOT_TERNARY_AVX512_INLINE __m512i Chunk(const uint8_t* block) {
  return Widen(block + 16 * c);
}
// VBMI, which only t5 asks for; inline assembly as in LookUp128.
template <int c>
TFMOT_TERNARY_AVX512_INLINE __m512i Chunk(__m512i block) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(16 * c));
  __m512i bytes;
  __asm__("vpermb %2, %1, %0" : "=v"(bytes) : "v"(index), "v"(block));
  return bytes;
}

// The bytes of a block that hold fields of kBits: as they are packed, or decoded from t5.
template <class Codec>
struct Nibbles {
  using Source = const uint8_t*;
  Source fields;

  static TFMOT_TERNARY_AVX512_INLINE Nibbles Of(const uint8_t* block) { return {block}; }
};
template <>
struct Nibbles<T5Codec> {
  using Source = __m512i;
  Source fields, top;

  static TFMOT_TERNARY_AVX512_INLINE Nibbles Of(const uint8_t* block) {
    const T5Codec::Block decoded = T5Codec::MakeBlock(Load(block));
    return {decoded.pairs, T5Codec::Digits<4>(decoded)};
  }
};

// 16 weights from bytes of weight + 1.
TFMOT_TERNARY_AVX512_INLINE __m512 WeightsOf(const uint8_t* codes) {
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(Widen(codes), _mm512_set1_epi32(1)));
}

// The first `count` of 16 lanes, or all.
inline __mmask16 FirstLanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : 0xffff >> (16 - count));
}

// FloatFunctions::dequantize, for each codec.
template <class Codec>
void Dequantize(const uint8_t* row, int64_t k, const float* scales, int64_t group_size, float* out);

}  // namespace avx512
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_AVX512_FLOAT_H_
