// AVX-512 building blocks: the codes of 64 packed bytes, field by field, and sums across lanes.
//
// Codes are unsigned (weight + DigitOffset; the bit for b1), because vpdpbusd multiplies unsigned
// by signed bytes; kernels take the offset times the sum of q out once per row. A field is masked
// out of its byte, not shifted: field f then holds a multiple of the code, has an accumulator of
// its own, and is divided once per row.
#ifndef TFMOT_TERNARY_KERNELS_AVX512_H_
#define TFMOT_TERNARY_KERNELS_AVX512_H_

// gcc 12 takes the "any value" operands inside its own intrinsics for uninitialized variables.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstdint>

#include "custom_ops/kernels/gemm.h"

#define TFMOT_TERNARY_AVX512_FEATURES "avx512f,avx512bw,avx512dq,avx512vl"
#define TFMOT_TERNARY_AVX512 __attribute__((target(TFMOT_TERNARY_AVX512_FEATURES)))
#define TFMOT_TERNARY_AVX512_INLINE \
  inline __attribute__((always_inline, target(TFMOT_TERNARY_AVX512_FEATURES)))

namespace tfmot_ternary {
namespace avx512 {

// acc += the dot products of four unsigned and four signed bytes. Inline assembly because gcc 12
// copies the accumulator twice around _mm512_dpbusd_epi32 in a loop.
TFMOT_TERNARY_AVX512_INLINE void DotBytes(__m512i codes, __m512i q, __m512i* acc) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(codes), "v"(q));
}

// VBMI: the bytes of a table of 128 at `index` modulo 128. Inline assembly, so that the templates
// around it need not name VBMI as their target: only the t5 lines of the table ask for it.
TFMOT_TERNARY_AVX512_INLINE __m512i LookUp128(__m512i index, __m512i low, __m512i high) {
  __asm__("vpermi2b %2, %1, %0" : "+v"(index) : "v"(low), "v"(high));
  return index;
}

// Keeps gcc 12 from loading the value again for every mask that is taken of it.
TFMOT_TERNARY_AVX512_INLINE void HoldInRegister(__m512i* value) { __asm__("" : "+v"(*value)); }

TFMOT_TERNARY_AVX512_INLINE __m512i Load(const void* p) { return _mm512_loadu_si512(p); }

// Asks for the line at `p`, which may lie outside of all buffers, into the second-level cache.
TFMOT_TERNARY_AVX512_INLINE void Prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

// The first `count` bytes, 0 < count <= 64, zero beyond; reads no other byte.
TFMOT_TERNARY_AVX512_INLINE __m512i LoadPart(const void* p, int64_t count) {
  return _mm512_maskz_loadu_epi8(~uint64_t{0} >> (64 - count), p);
}

// A codec makes a Block of 64 bytes. Field<f>(block) is the codes of field f, or a multiple of them
// that belongs to Accumulator(f); Total adds the accumulators up to the sum of code * q, of which
// the sum of weight * q is kSumFactor * total - offset * sum of q. Digits<f>(block) is weight +
// offset of field f.

struct T2Codec {
  static constexpr Format kFormat = Format::kT2;
  static constexpr int kFields = 4;
  static constexpr int kAccumulators = 4;
  static constexpr int kSumFactor = 1;
  using Block = __m512i;

  static TFMOT_TERNARY_AVX512_INLINE Block MakeBlock(__m512i bytes) { return bytes; }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Field(const Block& block) {
    return _mm512_and_si512(block, _mm512_set1_epi8(static_cast<char>(3 << (2 * f))));
  }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Digits(const Block& block) {
    const __m512i shifted = f == 0 ? block : _mm512_srli_epi16(block, 2 * f);
    return _mm512_and_si512(shifted, _mm512_set1_epi8(3));
  }
  static constexpr int Accumulator(int f) { return f; }
  static constexpr int Shift(int f) { return 2 * f; }
  static TFMOT_TERNARY_AVX512_INLINE __m512i Total(const __m512i* acc) {
    // Multiples of 4^f: the shifts drop zeros only.
    __m512i total = _mm512_add_epi32(acc[2], _mm512_srai_epi32(acc[3], 2));
    total = _mm512_add_epi32(acc[1], _mm512_srai_epi32(total, 2));
    return _mm512_add_epi32(acc[0], _mm512_srai_epi32(total, 2));
  }
};

struct B1Codec {
  static constexpr Format kFormat = Format::kB1;
  static constexpr int kFields = 8;
  static constexpr int kAccumulators = 4;  // fields f and f + 4 share one
  static constexpr int kSumFactor = 2;
  struct Block {
    __m512i low, high;
  };

  static TFMOT_TERNARY_AVX512_INLINE Block MakeBlock(__m512i bytes) {
    return {bytes, _mm512_srli_epi16(bytes, 4)};
  }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Field(const Block& block) {
    return _mm512_and_si512(f < 4 ? block.low : block.high,
                            _mm512_set1_epi8(static_cast<char>(1 << (f % 4))));
  }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Digits(const Block& block) {
    const __m512i bit = _mm512_set1_epi8(static_cast<char>(1 << f));
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(block.low, bit), _mm512_set1_epi8(2));
  }
  static constexpr int Accumulator(int f) { return f % 4; }
  static constexpr int Shift(int f) { return f % 4; }
  static TFMOT_TERNARY_AVX512_INLINE __m512i Total(const __m512i* acc) {
    __m512i total = _mm512_add_epi32(acc[2], _mm512_srai_epi32(acc[3], 1));
    total = _mm512_add_epi32(acc[1], _mm512_srai_epi32(total, 1));
    return _mm512_add_epi32(acc[0], _mm512_srai_epi32(total, 1));
  }
};

// The top digit times 81 comes off with two minima (byte - 81 wraps to a large value below 81); the
// other four digits, 0 to 80, are looked up as four bit pairs, the layout of t2.
struct T5Codec {
  static constexpr Format kFormat = Format::kT5;
  static constexpr int kFields = 5;
  static constexpr int kAccumulators = 5;
  static constexpr int kSumFactor = 1;
  struct Block {
    __m512i pairs, top;  // top: 81 * digit 4
  };

  alignas(64) static const uint8_t kPairs[128];

  static TFMOT_TERNARY_AVX512_INLINE Block MakeBlock(__m512i bytes) {
    const __m512i less_one = _mm512_sub_epi8(bytes, _mm512_set1_epi8(81));
    const __m512i less_two = _mm512_sub_epi8(bytes, _mm512_set1_epi8(static_cast<char>(162)));
    const __m512i rest = _mm512_min_epu8(bytes, _mm512_min_epu8(less_one, less_two));
    const __m512i pairs = LookUp128(rest, Load(kPairs), Load(kPairs + 64));
    return {pairs, _mm512_sub_epi8(bytes, rest)};
  }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Field(const Block& block) {
    if (f == 4) return block.top;
    return _mm512_and_si512(block.pairs, _mm512_set1_epi8(static_cast<char>(3 << (2 * f % 8))));
  }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Digits(const Block& block) {
    // 81 and 162 are 01010001b and 10100010b: the upper bit pair is the digit.
    const __m512i from = f == 4 ? block.top : block.pairs;
    const int shift = f == 4 ? 6 : 2 * f;
    const __m512i shifted = shift == 0 ? from : _mm512_srli_epi16(from, shift);
    return _mm512_and_si512(shifted, _mm512_set1_epi8(3));
  }
  static constexpr int Accumulator(int f) { return f; }
  static constexpr int Shift(int f) { return 2 * f; }  // of fields 0 to 3
  static TFMOT_TERNARY_AVX512_INLINE __m512i Total(const __m512i* acc) {
    // A multiple of 81 divides by multiplication with the inverse of 81 modulo 2^32.
    constexpr uint32_t kInverse = 0x781948b1u;
    static_assert(81u * kInverse == 1u, "inverse of 81");
    const __m512i top =
        _mm512_mullo_epi32(acc[4], _mm512_set1_epi32(static_cast<int32_t>(kInverse)));
    return _mm512_add_epi32(T2Codec::Total(acc), top);
  }
};

struct I8Codec {
  static constexpr Format kFormat = Format::kI8;
  static constexpr int kFields = 1;
  static constexpr int kAccumulators = 1;
  static constexpr int kSumFactor = 1;
  using Block = __m512i;

  static TFMOT_TERNARY_AVX512_INLINE Block MakeBlock(__m512i bytes) { return bytes; }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Field(const Block& block) {
    return block;
  }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Digits(const Block& block) {
    return block;
  }
  static constexpr int Accumulator(int /*f*/) { return 0; }
  static TFMOT_TERNARY_AVX512_INLINE __m512i Total(const __m512i* acc) { return acc[0]; }
};

struct I4Codec {
  static constexpr Format kFormat = Format::kI4;
  static constexpr int kFields = 2;
  static constexpr int kAccumulators = 2;
  static constexpr int kSumFactor = 1;
  using Block = __m512i;

  static TFMOT_TERNARY_AVX512_INLINE Block MakeBlock(__m512i bytes) { return bytes; }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Field(const Block& block) {
    return _mm512_and_si512(block, _mm512_set1_epi8(static_cast<char>(15 << (4 * f))));
  }
  template <int f>
  static TFMOT_TERNARY_AVX512_INLINE __m512i Digits(const Block& block) {
    const __m512i shifted = f == 0 ? block : _mm512_srli_epi16(block, 4 * f);
    return _mm512_and_si512(shifted, _mm512_set1_epi8(15));
  }
  static constexpr int Accumulator(int f) { return f; }
  static TFMOT_TERNARY_AVX512_INLINE __m512i Total(const __m512i* acc) {
    return _mm512_add_epi32(acc[0], _mm512_srai_epi32(acc[1], 4));
  }
};

// Sums of the 16 lanes of four vectors, in order.
TFMOT_TERNARY_AVX512_INLINE __m128i SumLanes4(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i abcd =
      _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half =
      _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// 16 rows of 16 dwords -> 16 columns. The rows are destroyed.
TFMOT_TERNARY_AVX512_INLINE void Transpose16(__m512i* a, __m512i* b) {
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
  // a[4 j + c]: in 128-bit lane l, dword 4 l + c of the rows 4 j to 4 j + 3.
  for (int r = 0; r < 16; r += 4) {
    a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i low01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xee);
    b[c] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    b[4 + c] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    b[8 + c] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    b[12 + c] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

// Loads `size` bytes (0 < size <= 64) of each of 16 rows and turns them: columns[d] holds dword d
// of every row. Packed bytes are turned before they are decoded: one column then gives, field by
// field, four weights of every row.
TFMOT_TERNARY_AVX512_INLINE void LoadColumns(const uint8_t* const* rows, int64_t offset,
                                             int64_t size, __m512i* columns) {
  __m512i bytes[16];
  if (size == kBlockBytes) {
    for (int r = 0; r < 16; ++r) {
      bytes[r] = Load(rows[r] + offset);
      HoldInRegister(&bytes[r]);
    }
  } else {
    for (int r = 0; r < 16; ++r) bytes[r] = LoadPart(rows[r] + offset, size);
  }
  Transpose16(bytes, columns);
}

// 16 rows of the tile from `first` on; where the tile ends, its last row again.
inline void PointToRows(const GemmTile& tile, int first, const uint8_t** rows) {
  for (int r = 0; r < 16; ++r) {
    const int row = first + r < tile.row_count ? first + r : tile.row_count - 1;
    rows[r] = tile.rows + row * tile.row_bytes;
  }
}

// Asks for the block that follows the one at `offset` of each of 16 rows of a tile: the next one of
// the row, at its end the first one of the next tile. (Hardware prefetches lines in order and
// stumbles over rows that are read side by side. Measured at 16 rows of x, weights in memory: two
// fifths less time; in the cache: 5 % more. The whole next tile ahead: half, and 18 % more.)
TFMOT_TERNARY_AVX512_INLINE void PrefetchNextBlock(const GemmTile& tile, const uint8_t* const* rows,
                                                   int64_t offset) {
  const int64_t next = offset + kBlockBytes;
  const int64_t from = next < tile.row_bytes ? next : kTileRows * tile.row_bytes;
  for (int r = 0; r < 16; ++r) {
    _mm_prefetch(reinterpret_cast<const char*>(rows[r] + from), _MM_HINT_T0);
  }
}

// Weights of a row that DecodePiece handles at once: whole blocks of the format and whole groups.
template <class Codec>
constexpr int64_t kPieceWeights = Codec::kFormat == Format::kT5 ? 1280 : 1024;

// Bytes from one decoded row to the next: a short block is stored 64 bytes at a time.
constexpr int64_t kDecodedStride = 1280 + 64;

// Stores the digits of field f and of those after it, `step` bytes apart.
template <class Codec, int f>
TFMOT_TERNARY_AVX512_INLINE void StoreFields(const typename Codec::Block& block, int64_t step,
                                             uint8_t* out) {
  if constexpr (f < Codec::kFields) {
    _mm512_storeu_si512(out + f * step, Codec::template Digits<f>(block));
    StoreFields<Codec, f + 1>(block, step, out);
  }
}

// Writes weight + offset for `count` <= kPieceWeights weights; touches out[0, count + 63].
template <class Codec>
TFMOT_TERNARY_AVX512_INLINE void DecodePiece(const uint8_t* row, int64_t count, uint8_t* out) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  for (; count >= kBlockWeights; count -= kBlockWeights) {
    StoreFields<Codec, 0>(Codec::MakeBlock(Load(row)), kBlockBytes, out);
    row += kBlockBytes;
    out += kBlockWeights;
  }
  if (count > 0) {
    const int64_t size = ShortBlockBytes(Codec::kFormat, count);
    StoreFields<Codec, 0>(Codec::MakeBlock(LoadPart(row, size)), size, out);
  }
}

}  // namespace avx512
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_AVX512_H_
