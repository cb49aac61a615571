// The codes of packed bytes, written once for the vectors of avx2.h and avx512bw.h: a file that
// includes this one has defined
//
//   TFMOT_TERNARY_VECTOR_SPACE     the namespace with Vector and its functions
//   TFMOT_TERNARY_VECTOR           the target attribute of a function on them
//   TFMOT_TERNARY_VECTOR_INLINE    the same for one that must be inlined
//
// A codec makes a Block of a vector of packed bytes. Field<f>(block) is the codes of field f, or
// 2^n times them, n = Shift(f): fields are masked out of their bytes rather than shifted. Codes are
// unsigned, because byte products are unsigned times signed: weight + DigitOffset(format), or the
// bit for b1; the sum of weight * q is kSumFactor times the sum of code * q, less the offset times
// the sum of q. Digits<f>(block) is weight + offset.
//
// kWide: sums of products have 32 bits, and every mask its own accumulator. Otherwise they have 16:
// a pair of codes times int8 is 512 in magnitude at most (b1: 256), so that fields hold at most 4
// (b1: 8) times the code, and an accumulator has room for 16 products.
//
// Sums over a row have kAccumulators, the one of field f is Accumulator(f); accumulator a holds
// 2^(a * kStep) times the codes.
#ifndef TFMOT_TERNARY_KERNELS_CODECS_BODY_H_
#define TFMOT_TERNARY_KERNELS_CODECS_BODY_H_

#include <cstdint>

#include "custom_ops/kernels/format.h"

namespace tfmot_ternary {
namespace TFMOT_TERNARY_VECTOR_SPACE {

template <bool kWide>
struct T2Codes {
  static constexpr Format kFormat = Format::kT2;
  static constexpr int kFields = 4;
  static constexpr int kAccumulators = kWide ? 4 : 2;
  static constexpr int kStep = 2;
  static constexpr int kSumFactor = 1;
  struct Block {
    Vector low, high;
  };

  static TFMOT_TERNARY_VECTOR_INLINE Block MakeBlock(Vector bytes) {
    return {bytes, kWide ? bytes : ShiftBits16<4>(bytes)};
  }
  static constexpr int Accumulator(int f) { return kWide ? f : f % 2; }
  static constexpr int Shift(int f) { return 2 * Accumulator(f); }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Field(const Block& block) {
    return And(f < 2 ? block.low : block.high, Set8(3 << Shift(f)));
  }
  // weight + 1.
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Digits(const Block& block) {
    return And(ShiftBits16<2 * f>(block.low), Set8(3));
  }
};

template <bool kWide>
struct B1Codes {
  static constexpr Format kFormat = Format::kB1;
  static constexpr int kFields = 8;
  static constexpr int kAccumulators = 4;
  static constexpr int kStep = 1;
  static constexpr int kSumFactor = 2;
  struct Block {
    Vector low, high;
  };

  static TFMOT_TERNARY_VECTOR_INLINE Block MakeBlock(Vector bytes) {
    return {bytes, ShiftBits16<4>(bytes)};
  }
  static constexpr int Accumulator(int f) { return f % 4; }
  static constexpr int Shift(int f) { return f % 4; }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Field(const Block& block) {
    return And(f < 4 ? block.low : block.high, Set8(1 << Shift(f)));
  }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Digits(const Block& block) {
    constexpr int kShift = f == 0 ? 0 : f - 1;
    const Vector bytes = f == 0 ? Add8(block.low, block.low) : block.low;
    return And(ShiftBits16<kShift>(bytes), Set8(2));
  }
};

// byte = 27 u + v. The upper four bits of the byte give a multiple of 27 that leaves less than 54,
// a minimum takes the last 27 off (v - 27 wraps to a large value below 27), and two minima take 9
// and 18 off v. What is left, and the lower four bits of 27 u, all different, index tables of 16.
constexpr uint8_t T5Multiple(int upper_bits) {
  return static_cast<uint8_t>(16 * upper_bits / 27 * 27);
}
// u, 0 to 9, of the lower four bits of 27 u (27 * 3 is 1 modulo 16). 9 stems from bytes that hold
// no code; its digits are those of UnpackRow.
constexpr int T5Upper(int lower_bits) { return 3 * lower_bits % 16 <= 9 ? 3 * lower_bits % 16 : 0; }
constexpr uint8_t T5Digit3(int lower_bits) { return static_cast<uint8_t>(T5Upper(lower_bits) % 3); }
constexpr uint8_t T5Digit4(int lower_bits) {
  return static_cast<uint8_t>(T5Upper(lower_bits) < 6 ? T5Upper(lower_bits) / 3 : 2);
}
constexpr uint8_t T5Digit0(int rest) { return static_cast<uint8_t>(rest % 3); }
constexpr uint8_t T5Digit1(int rest) { return static_cast<uint8_t>(rest / 3 % 3); }

#define TFMOT_TERNARY_TABLE(f)                          \
  {f(0), f(1), f(2),  f(3),  f(4),  f(5),  f(6),  f(7), \
   f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)}
alignas(16) constexpr uint8_t kT5Multiples[16] = TFMOT_TERNARY_TABLE(T5Multiple);
alignas(16) constexpr uint8_t kT5Digits[4][16] = {
    TFMOT_TERNARY_TABLE(T5Digit0), TFMOT_TERNARY_TABLE(T5Digit1), TFMOT_TERNARY_TABLE(T5Digit3),
    TFMOT_TERNARY_TABLE(T5Digit4)};
#undef TFMOT_TERNARY_TABLE

template <bool kWide>
struct T5Codes {
  static constexpr Format kFormat = Format::kT5;
  static constexpr int kFields = 5;
  static constexpr int kAccumulators = kWide ? 5 : 1;  // more than one for independent chains
  static constexpr int kStep = 0;
  static constexpr int kSumFactor = 1;
  struct Block {
    Vector rest;   // digit 0 + 3 * digit 1
    Vector nines;  // 9 * digit 2
    Vector upper;  // the lower four bits of 27 u
  };

  static TFMOT_TERNARY_VECTOR_INLINE Block MakeBlock(Vector bytes) {
    const Vector upper_bits = And(ShiftBits16<4>(bytes), Set8(15));
    const Vector below_54 = Sub8(bytes, LookUp(LoadTable(kT5Multiples), upper_bits));
    const Vector v = Min8(below_54, Sub8(below_54, Set8(27)));
    const Vector rest = Min8(v, Min8(Sub8(v, Set8(9)), Sub8(v, Set8(18))));
    return {rest, Sub8(v, rest), And(Sub8(bytes, v), Set8(15))};
  }
  static constexpr int Accumulator(int f) { return kWide ? f : 0; }
  static constexpr int Shift(int /*f*/) { return 0; }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Field(const Block& block) {
    if constexpr (f == 2) {
      return And(block.nines, Set8(3));  // 9 is 01001b, 18 is 10010b
    } else {
      return LookUp(LoadTable(kT5Digits[f < 2 ? f : f - 1]), f < 2 ? block.rest : block.upper);
    }
  }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Digits(const Block& block) {
    return Field<f>(block);
  }
};

// A byte holds too much for sums of 16 bits.
template <bool kWide>
struct I8Codes {
  static_assert(kWide, "sums of 32 bits");
  static constexpr Format kFormat = Format::kI8;
  static constexpr int kFields = 1;
  static constexpr int kAccumulators = 1;
  static constexpr int kStep = 0;
  static constexpr int kSumFactor = 1;
  using Block = Vector;

  static TFMOT_TERNARY_VECTOR_INLINE Block MakeBlock(Vector bytes) { return bytes; }
  static constexpr int Accumulator(int /*f*/) { return 0; }
  static constexpr int Shift(int /*f*/) { return 0; }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Field(const Block& block) {
    return block;
  }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Digits(const Block& block) {
    return block;
  }
};

template <bool kWide>
struct I4Codes {
  static_assert(kWide, "sums of 32 bits");
  static constexpr Format kFormat = Format::kI4;
  static constexpr int kFields = 2;
  static constexpr int kAccumulators = 2;
  static constexpr int kStep = 4;
  static constexpr int kSumFactor = 1;
  using Block = Vector;

  static TFMOT_TERNARY_VECTOR_INLINE Block MakeBlock(Vector bytes) { return bytes; }
  static constexpr int Accumulator(int f) { return f; }
  static constexpr int Shift(int f) { return 4 * f; }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Field(const Block& block) {
    return And(block, Set8(15 << (4 * f)));
  }
  template <int f>
  static TFMOT_TERNARY_VECTOR_INLINE Vector Digits(const Block& block) {
    return And(ShiftBits16<4 * f>(block), Set8(15));
  }
};

using T2Codec = T2Codes<false>;
using T5Codec = T5Codes<false>;
using B1Codec = B1Codes<false>;
using I8Codec = I8Codes<true>;
using I4Codec = I4Codes<true>;

// Stores the digits of `count` vectors of packed bytes: field f, then those after it, `step` bytes
// apart.
template <class Codec, int count, int f = 0>
TFMOT_TERNARY_VECTOR_INLINE void StoreFields(const typename Codec::Block* blocks, int64_t step,
                                             uint8_t* out) {
  if constexpr (f < Codec::kFields) {
    for (int i = 0; i < count; ++i) {
      Store(out + f * step + i * kVectorBytes, Codec::template Digits<f>(blocks[i]));
    }
    StoreFields<Codec, count, f + 1>(blocks, step, out);
  }
}

// Weights of a row that DecodePiece handles at once: whole blocks of the format and whole groups.
template <class Codec>
constexpr int64_t kPieceWeights = Codec::kFormat == Format::kT5 ? 1280 : 1024;

// Bytes of a decoded piece: a short block is stored 64 bytes at a time.
constexpr int64_t kDecodedBytes = 1280 + 64;

// Writes weight + offset for `count` <= kPieceWeights weights; touches out[0, count + 63].
template <class Codec>
TFMOT_TERNARY_VECTOR_INLINE void DecodePiece(const uint8_t* row, int64_t count, uint8_t* out) {
  constexpr int64_t kBlockWeights = kBlockBytes * Codec::kFields;
  constexpr int kVectors = kBlockBytes / kVectorBytes;
  typename Codec::Block blocks[kVectors];
  for (; count >= kBlockWeights; count -= kBlockWeights) {
    for (int i = 0; i < kVectors; ++i) blocks[i] = Codec::MakeBlock(Load(row + i * kVectorBytes));
    StoreFields<Codec, kVectors>(blocks, kBlockBytes, out);
    row += kBlockBytes;
    out += kBlockWeights;
  }
  if (count > 0) {
    const int64_t size = ShortBlockBytes(Codec::kFormat, count);
    for (int i = 0; i < kVectors; ++i) {
      blocks[i] = Codec::MakeBlock(LoadPart(row + i * kVectorBytes, size - i * kVectorBytes));
    }
    StoreFields<Codec, kVectors>(blocks, size, out);
  }
}

}  // namespace TFMOT_TERNARY_VECTOR_SPACE
}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_CODECS_BODY_H_
