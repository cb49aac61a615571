// AVX-512 VNNI decode for rows with several groups: the sums of 16 rows of W, group by group.
//
// A dot product leaves parts of a row's sum in 16 lanes, and adding those up for every group would
// cost more than the products. So the packed blocks of 16 rows are first turned by pieces of 16
// bytes, through memory: the stores that take the lanes apart need no port that the products use. A
// vector then holds a piece each of four rows, four accumulators cover 16 rows, and four parts of a
// row are left to add.
#ifndef TFMOT_TERNARY_KERNELS_AVX512_GROUPS_H_
#define TFMOT_TERNARY_KERNELS_AVX512_GROUPS_H_

#include <cstdint>

#include "custom_ops/kernels/avx512.h"

namespace tfmot_ternary {
namespace avx512 {

// A block of each of 16 rows, turned: vector 4 c + s holds piece c of the rows s, 4 + s, 8 + s and
// 12 + s, so that sums over the parts of four such vectors come out in the order of the rows.
constexpr int64_t kTurnedBytes = 16 * kBlockBytes;

// A block that is to be turned.
struct BlockOf16Rows {
  const uint8_t* const* rows;
  int64_t offset;
  uint8_t* to;
  const uint8_t* ahead;  // 1 KiB that is asked for meanwhile, in its order in memory

  // `line` of 16: one is asked for with every row that is loaded.
  TFMOT_TERNARY_AVX512_INLINE __m512i LoadRow(int r, int line) const {
    Prefetch(ahead + line * kBlockBytes);
    return Load(rows[r] + offset);
  }
};

// Stores piece c of a row. Inline assembly keeps gcc from gathering the stores of a block in
// one place, where they would hold up the products.
template <int c>
TFMOT_TERNARY_AVX512_INLINE void StorePiece(__m512i row, uint8_t* to) {
  __m128i* piece = reinterpret_cast<__m128i*>(to);
  if constexpr (c == 0) {
    __asm__ volatile("vmovdqu32 %x1, %0" : "=m"(*piece) : "v"(row));
  } else {
    __asm__ volatile("vextracti32x4 %2, %1, %0" : "=m"(*piece) : "v"(row), "i"(c));
  }
}

template <int kBits, int f>
TFMOT_TERNARY_AVX512_INLINE __m512i MaskField(__m512i bytes) {
  constexpr int kMask = ((1 << kBits) - 1) << (kBits * f);
  return _mm512_and_si512(bytes, _mm512_set1_epi8(static_cast<char>(kMask)));
}

TFMOT_TERNARY_AVX512_INLINE __m512i BroadcastPiece(const int8_t* q) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
}

TFMOT_TERNARY_AVX512_INLINE void SetZero4(__m512i* acc) {
  acc[0] = acc[1] = acc[2] = acc[3] = _mm512_setzero_si512();
}

// Sums of the fields [kFirst, kFirst + 4) of a turned block, kBits bits each: acc[4 i + s] belongs
// to field kFirst + i and to the rows of the vectors 4 c + s, and is that multiple of the sum that
// the unshifted field is. On the way, the next block is turned.
template <int kBits, int kFirst>
struct FieldSums {
  template <int i, int s, int c>
  static TFMOT_TERNARY_AVX512_INLINE void AddFields(__m512i bytes, const __m512i* q,
                                                    const __m512i* next_rows, uint8_t* next,
                                                    __m512i* acc) {
    if constexpr (i < 4) {
      __asm__ volatile("vpdpbusd %2, %1, %0"
                       : "+v"(acc[4 * i + s])
                       : "v"(MaskField<kBits, kFirst + i>(bytes)), "v"(q[i]));
      if constexpr (kFirst == 0) StorePiece<s>(next_rows[i], next + s * 256 + c * 64 + i * 16);
      AddFields<i + 1, s, c>(bytes, q, next_rows, next, acc);
    }
  }

  template <int s, int c>
  static TFMOT_TERNARY_AVX512_INLINE void AddVectors(const uint8_t* block, const __m512i* q,
                                                     const __m512i* next_rows, uint8_t* next,
                                                     __m512i* acc) {
    if constexpr (s < 4) {
      __m512i bytes = _mm512_load_si512(block + c * 256 + s * 64);
      HoldInRegister(&bytes);
      AddFields<0, s, c>(bytes, q, next_rows, next, acc);
      AddVectors<s + 1, c>(block, q, next_rows, next, acc);
    }
  }

  // Pieces [c, end).
  template <int c, int end>
  static TFMOT_TERNARY_AVX512_INLINE void AddPieces(const uint8_t* block, const int8_t* q,
                                                    const BlockOf16Rows& next, __m512i* acc) {
    if constexpr (c < end) {
      __m512i rows[4] = {};
      if constexpr (kFirst == 0) {
        rows[0] = next.LoadRow(c, 4 * c);
        rows[1] = next.LoadRow(c + 4, 4 * c + 1);
        rows[2] = next.LoadRow(c + 8, 4 * c + 2);
        rows[3] = next.LoadRow(c + 12, 4 * c + 3);
      }
      const int8_t* from = q + kFirst * kBlockBytes + c * 16;
      const __m512i activations[4] = {BroadcastPiece(from), BroadcastPiece(from + kBlockBytes),
                                      BroadcastPiece(from + 2 * kBlockBytes),
                                      BroadcastPiece(from + 3 * kBlockBytes)};
      AddVectors<0, c>(block, activations, rows, next.to, acc);
      AddPieces<c + 1, end>(block, q, next, acc);
    }
  }

  // Pieces [begin, end) of the block.
  template <int begin, int end>
  static TFMOT_TERNARY_AVX512_INLINE void Run(const uint8_t* block, const int8_t* q,
                                              const BlockOf16Rows& next, __m512i* acc) {
    SetZero4(acc);
    SetZero4(acc + 4);
    SetZero4(acc + 8);
    SetZero4(acc + 12);
    AddPieces<begin, end>(block, q, next, acc);
  }
};

// Turns a block without anything to do meanwhile.
TFMOT_TERNARY_AVX512_INLINE void TurnBlock(const BlockOf16Rows& block) {
  for (int r = 0; r < 16; ++r) {
    uint8_t* to = block.to + r % 4 * 64 + r / 4 * 16;
    const __m512i row = block.LoadRow(r, r);
    StorePiece<0>(row, to);
    StorePiece<1>(row, to + 256);
    StorePiece<2>(row, to + 512);
    StorePiece<3>(row, to + 768);
  }
}

// A shift to the right; to the left where it is negative.
template <int shift>
TFMOT_TERNARY_AVX512_INLINE void Shift4(__m512i* acc) {
  if constexpr (shift > 0) {
    acc[0] = _mm512_srai_epi32(acc[0], shift);
    acc[1] = _mm512_srai_epi32(acc[1], shift);
    acc[2] = _mm512_srai_epi32(acc[2], shift);
    acc[3] = _mm512_srai_epi32(acc[3], shift);
  } else if constexpr (shift < 0) {
    acc[0] = _mm512_slli_epi32(acc[0], -shift);
    acc[1] = _mm512_slli_epi32(acc[1], -shift);
    acc[2] = _mm512_slli_epi32(acc[2], -shift);
    acc[3] = _mm512_slli_epi32(acc[3], -shift);
  }
}

TFMOT_TERNARY_AVX512_INLINE void Add4(const __m512i* from, __m512i* acc) {
  acc[0] = _mm512_add_epi32(acc[0], from[0]);
  acc[1] = _mm512_add_epi32(acc[1], from[1]);
  acc[2] = _mm512_add_epi32(acc[2], from[2]);
  acc[3] = _mm512_add_epi32(acc[3], from[3]);
}

// Adds up the four parts of each of 16 rows. A part is the sum of at most 64 weights, and half of a
// group of 256 the sum of 128: from -2 * 128 * 128 to 2 * 127 * 128, which 16 bits hold.
TFMOT_TERNARY_AVX512_INLINE __m512i SumParts(const __m512i* acc) {
  const __m512i ones = _mm512_set1_epi16(1);
  const __m512i low = _mm512_madd_epi16(_mm512_packs_epi32(acc[0], acc[1]), ones);
  const __m512i high = _mm512_madd_epi16(_mm512_packs_epi32(acc[2], acc[3]), ones);
  return _mm512_madd_epi16(_mm512_packs_epi32(low, high), ones);
}

// Takes group sums of 16 rows, in the order of the row: stores them, or adds them up in float32.
struct GroupWriter {
  const int32_t* sums;  // of q over the groups
  int32_t* out;         // null where `scales` is not
  const float* scales;
  __m512 scaled;         // the sum of sum * scale
  const uint8_t* ahead;  // of scales: a line for each group and 16 rows
  int64_t group_size;
  int64_t filled = 0;  // weights in `pending`
  __m512i pending;     // the sum of (weight + 1) * q over the group that is under way

  TFMOT_TERNARY_AVX512_INLINE void Store(__m512i total, int64_t group) {
    total = _mm512_sub_epi32(total, _mm512_set1_epi32(sums[group]));
    if (out != nullptr) {
      _mm512_store_si512(out + group * kTileRows, total);
    } else {
      Prefetch(ahead + group * kBlockBytes);
      const __m512 scale = _mm512_load_ps(scales + group * kTileRows);
      scaled = _mm512_add_ps(scaled, _mm512_mul_ps(_mm512_cvtepi32_ps(total), scale));
    }
  }
  TFMOT_TERNARY_AVX512_INLINE void Next(int64_t groups) {
    sums += groups;
    if (out != nullptr) {
      out += groups * kTileRows;
    } else {
      scales += groups * kTileRows;
      ahead += groups * kBlockBytes;
    }
  }
  // Adds `weights` of them, all of one group.
  TFMOT_TERNARY_AVX512_INLINE void Add(__m512i total, int64_t weights) {
    pending = filled == 0 ? total : _mm512_add_epi32(pending, total);
    filled += weights;
    if (filled == group_size) Flush();
  }
  TFMOT_TERNARY_AVX512_INLINE void Flush() {
    if (filled == 0) return;
    Store(pending, 0);
    Next(1);
    filled = 0;
  }
};

// A turned block times q, in groups of kGroup.
template <class Codec, int kGroup>
struct GroupBlock {
  static constexpr int kBits = Codec::kFormat == Format::kB1 ? 1 : 2;

  // What makes field f's multiple of the sum the sum of (weight + 1) * q; b1 counts its bits twice.
  template <int f>
  static constexpr int kShift = Codec::kFormat == Format::kB1 ? f - 1 : 2 * f;

  template <int kFirst>
  static TFMOT_TERNARY_AVX512_INLINE void ShiftFields(__m512i* acc) {
    Shift4<kShift<kFirst>>(acc);
    Shift4<kShift<kFirst + 1>>(acc + 4);
    Shift4<kShift<kFirst + 2>>(acc + 8);
    Shift4<kShift<kFirst + 3>>(acc + 12);
  }

  // Half of four fields in groups of 32.
  template <int kFirst, int half>
  static TFMOT_TERNARY_AVX512_INLINE void MultiplyHalf(const uint8_t* block, const int8_t* q,
                                                       const BlockOf16Rows& next, __m512i* totals) {
    __m512i acc[16];
    FieldSums<kBits, kFirst>::template Run<2 * half, 2 * half + 2>(block, q, next, acc);
    ShiftFields<kFirst>(acc);
    totals[half] = SumParts(acc);
    totals[2 + half] = SumParts(acc + 4);
    totals[4 + half] = SumParts(acc + 8);
    totals[6 + half] = SumParts(acc + 12);
  }

  // Four fields.
  template <int kFirst>
  static TFMOT_TERNARY_AVX512_INLINE void Multiply4(const uint8_t* block, const int8_t* q,
                                                    const BlockOf16Rows& next,
                                                    GroupWriter* writer) {
    if constexpr (kGroup == 32) {
      __m512i totals[8];
      MultiplyHalf<kFirst, 0>(block, q, next, totals);
      MultiplyHalf<kFirst, 1>(block, q, next, totals);
      for (int g = 0; g < 8; ++g) writer->Store(totals[g], g);
    } else {
      __m512i acc[16];
      FieldSums<kBits, kFirst>::template Run<0, 4>(block, q, next, acc);
      ShiftFields<kFirst>(acc);
      if constexpr (kGroup > 64) {
        Add4(acc + 4, acc);
        Add4(acc + 12, acc + 8);
      }
      if constexpr (kGroup > 128) Add4(acc + 8, acc);
      writer->Store(SumParts(acc), 0);
      if constexpr (kGroup == 64) writer->Store(SumParts(acc + 4), 1);
      if constexpr (kGroup <= 128) writer->Store(SumParts(acc + 8), 128 / kGroup);
      if constexpr (kGroup == 64) writer->Store(SumParts(acc + 12), 3);
    }
    writer->Next(256 / kGroup);
  }

  static TFMOT_TERNARY_AVX512_INLINE void Run(const uint8_t* block, const int8_t* q,
                                              const BlockOf16Rows& next, uint8_t* /*decoded*/,
                                              GroupWriter* writer) {
    Multiply4<0>(block, q, next, writer);
    if constexpr (Codec::kFields == 8) Multiply4<4>(block, q, next, writer);
  }
};

// t5: the four lower digits become bit pairs, the layout of t2; the top digits are a block of their
// own. Groups do not end where blocks do.
template <int kGroup>
struct GroupBlock<T5Codec, kGroup> {
  // The pieces [c, end) of the top digits.
  template <int c, int end>
  static TFMOT_TERNARY_AVX512_INLINE void AddTop(const uint8_t* top, const int8_t* q,
                                                 __m512i* acc) {
    if constexpr (c < end) {
      const __m512i activations = BroadcastPiece(q + c * 16);
      DotBytes(_mm512_load_si512(top + c * 256), activations, &acc[0]);
      DotBytes(_mm512_load_si512(top + c * 256 + 64), activations, &acc[1]);
      DotBytes(_mm512_load_si512(top + c * 256 + 128), activations, &acc[2]);
      DotBytes(_mm512_load_si512(top + c * 256 + 192), activations, &acc[3]);
      AddTop<c + 1, end>(top, q, acc);
    }
  }

  static TFMOT_TERNARY_AVX512_INLINE void Run(const uint8_t* block, const int8_t* q,
                                              const BlockOf16Rows& next, uint8_t* decoded,
                                              GroupWriter* writer) {
    uint8_t* top = decoded + kTurnedBytes;
    for (int64_t i = 0; i < kTurnedBytes; i += kBlockBytes) {
      const T5Codec::Block digits = T5Codec::MakeBlock(_mm512_load_si512(block + i));
      _mm512_store_si512(decoded + i, digits.pairs);
      // 81 and 162 are 01010001b and 10100010b.
      _mm512_store_si512(top + i, _mm512_and_si512(digits.top, _mm512_set1_epi8(3)));
    }
    const int8_t* top_q = q + 4 * kBlockBytes;
    if constexpr (kGroup == 32) {
      GroupBlock<T2Codec, 32>::template Multiply4<0>(decoded, q, next, writer);
      for (int half = 0; half < 2; ++half) {
        __m512i acc[4];
        SetZero4(acc);
        AddTop<0, 2>(top + half * 512, top_q + half * 32, acc);
        writer->Store(SumParts(acc), half);
      }
      writer->Next(2);
    } else {
      __m512i acc[16];
      FieldSums<2, 0>::template Run<0, 4>(decoded, q, next, acc);
      GroupBlock<T2Codec, kGroup>::template ShiftFields<0>(acc);
      writer->Add(SumParts(acc), kBlockBytes);
      writer->Add(SumParts(acc + 4), kBlockBytes);
      writer->Add(SumParts(acc + 8), kBlockBytes);
      writer->Add(SumParts(acc + 12), kBlockBytes);
      SetZero4(acc);
      AddTop<0, 4>(top, top_q, acc);
      writer->Add(SumParts(acc), kBlockBytes);
    }
  }
};

}  // namespace avx512
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_AVX512_GROUPS_H_
