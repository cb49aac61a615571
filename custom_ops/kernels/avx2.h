// AVX2 building blocks: packed bytes to one byte per weight.
#ifndef TFMOT_TERNARY_KERNELS_AVX2_H_
#define TFMOT_TERNARY_KERNELS_AVX2_H_

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "custom_ops/kernels/gemm.h"

#define TFMOT_TERNARY_AVX2 __attribute__((target("avx2")))
#define TFMOT_TERNARY_AVX2_INLINE inline __attribute__((always_inline, target("avx2")))

namespace tfmot_ternary {
namespace avx2 {

TFMOT_TERNARY_AVX2_INLINE __m256i Load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

TFMOT_TERNARY_AVX2_INLINE void Store(void* p, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), value);
}

// A codec writes weight + 1 of 32 packed bytes: digits[f] for field f.

struct T2Codec {
  static constexpr Format kFormat = Format::kT2;
  static constexpr int kFields = 4;

  static TFMOT_TERNARY_AVX2_INLINE void Decode(__m256i bytes, __m256i* digits) {
    const __m256i three = _mm256_set1_epi8(3);
    digits[0] = _mm256_and_si256(bytes, three);
    digits[1] = _mm256_and_si256(_mm256_srli_epi16(bytes, 2), three);
    digits[2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), three);
    digits[3] = _mm256_and_si256(_mm256_srli_epi16(bytes, 6), three);
  }
};

struct B1Codec {
  static constexpr Format kFormat = Format::kB1;
  static constexpr int kFields = 8;

  static TFMOT_TERNARY_AVX2_INLINE void Decode(__m256i bytes, __m256i* digits) {
    const __m256i two = _mm256_set1_epi8(2);
    digits[0] = _mm256_and_si256(_mm256_add_epi8(bytes, bytes), two);
    digits[1] = _mm256_and_si256(bytes, two);
    digits[2] = _mm256_and_si256(_mm256_srli_epi16(bytes, 1), two);
    digits[3] = _mm256_and_si256(_mm256_srli_epi16(bytes, 2), two);
    digits[4] = _mm256_and_si256(_mm256_srli_epi16(bytes, 3), two);
    digits[5] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), two);
    digits[6] = _mm256_and_si256(_mm256_srli_epi16(bytes, 5), two);
    digits[7] = _mm256_and_si256(_mm256_srli_epi16(bytes, 6), two);
  }
};

struct T5Codec {
  static constexpr Format kFormat = Format::kT5;
  static constexpr int kFields = 5;

  // byte = 27 * upper + lower; upper, 0 to 9, holds digits 3 and 4. Tables of 16 bytes do the rest.
  static TFMOT_TERNARY_AVX2_INLINE void Decode(__m256i bytes, __m256i* digits) {
    const __m256i remainder3 = _mm256_setr_epi8(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0,  //
                                                0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0);
    const __m256i quotient3 = _mm256_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2,  //
                                               0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2);
    const __m256i times27 =
        _mm256_setr_epi8(0, 27, 54, 81, 108, -121, -94, -67, -40, -13, 0, 0, 0, 0, 0, 0,  //
                         0, 27, 54, 81, 108, -121, -94, -67, -40, -13, 0, 0, 0, 0, 0, 0);
    // x / 27 = x * 19 / 512 for x below 256.
    const __m256i nineteen = _mm256_set1_epi16(19);
    const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(0xff));
    const __m256i odd = _mm256_srli_epi16(bytes, 8);
    const __m256i even_upper = _mm256_srli_epi16(_mm256_mullo_epi16(even, nineteen), 9);
    const __m256i odd_upper = _mm256_srli_epi16(_mm256_mullo_epi16(odd, nineteen), 9);
    const __m256i upper = _mm256_or_si256(even_upper, _mm256_slli_epi16(odd_upper, 8));
    const __m256i lower = _mm256_sub_epi8(bytes, _mm256_shuffle_epi8(times27, upper));
    digits[3] = _mm256_shuffle_epi8(remainder3, upper);
    digits[4] = _mm256_shuffle_epi8(quotient3, upper);
    // lower, 0 to 26, = 9 * digit 2 + rest: minus one for each threshold that is passed.
    const __m256i one = _mm256_cmpgt_epi8(lower, _mm256_set1_epi8(8));
    const __m256i two = _mm256_cmpgt_epi8(lower, _mm256_set1_epi8(17));
    const __m256i nine = _mm256_set1_epi8(9);
    digits[2] = _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(one, two));
    const __m256i rest = _mm256_sub_epi8(_mm256_sub_epi8(lower, _mm256_and_si256(one, nine)),
                                         _mm256_and_si256(two, nine));
    digits[0] = _mm256_shuffle_epi8(remainder3, rest);
    digits[1] = _mm256_shuffle_epi8(quotient3, rest);
  }
};

// Weights of a row that DecodePiece handles at once: whole blocks of the format and whole groups.
template <class Codec>
constexpr int64_t kPieceWeights = Codec::kFormat == Format::kT5 ? 1280 : 1024;

// Bytes of a decoded piece: a short block is stored 64 bytes at a time.
constexpr int64_t kDecodedBytes = 1280 + 64;

template <class Codec>
TFMOT_TERNARY_AVX2_INLINE void DecodeBlock(const uint8_t* block, int64_t size, uint8_t* out) {
  __m256i low[Codec::kFields], high[Codec::kFields];
  Codec::Decode(Load(block), low);
  Codec::Decode(Load(block + 32), high);
  for (int f = 0; f < Codec::kFields; ++f) {
    Store(out + f * size, low[f]);
    Store(out + f * size + 32, high[f]);
  }
}

// Writes weight + 1 for `count` <= kPieceWeights weights; touches out[0, count + 63].
template <class Codec>
TFMOT_TERNARY_AVX2_INLINE void DecodePiece(const uint8_t* row, int64_t count, uint8_t* out) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  for (; count >= kBlockWeights; count -= kBlockWeights) {
    DecodeBlock<Codec>(row, kBlockBytes, out);
    row += kBlockBytes;
    out += kBlockWeights;
  }
  if (count > 0) {
    alignas(32) uint8_t block[kBlockBytes] = {};
    const int64_t size = ShortBlockBytes(Codec::kFormat, count);
    std::memcpy(block, row, size);
    DecodeBlock<Codec>(block, size, out);
  }
}

}  // namespace avx2
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_AVX2_H_
