// The wire formats of packed weight rows (normative text: g3doc/packing.md).
//
// A row of k codes is stored as blocks of 64 bytes; a byte holds FieldsPerByte() weights. The order
// does not depend on the CPU, and every kernel reads it in place.
#ifndef TFMOT_TERNARY_KERNELS_FORMAT_H_
#define TFMOT_TERNARY_KERNELS_FORMAT_H_

#include <cstdint>

namespace tfmot_ternary {

// kT2: ternary, 2 bits per weight. kT5: ternary, five weights per byte in base 3. kB1: binary.
// kI8, kI4: integers of 8 and 4 bits.
enum class Format : uint8_t { kT2, kT5, kB1, kI8, kI4 };

constexpr int kFormatCount = 5;

// Bytes of a full block, and the most weights that one block holds (b1).
constexpr int64_t kBlockBytes = 64;
constexpr int64_t kMaxBlockWeights = 8 * kBlockBytes;

// Longest row that the kernels take, |q| being 128 at most, and the largest for any format. Bounds:
// a kernel may keep sums of digit * q unshifted in one int32 lane. t2, t5, b1: at most 257 * k
// (t5: 162 * 127 * 4 for every 320 weights), below 2^31 up to k = 8.3 million. i8: 255 * 128 * k,
// and i4, whose upper digits may stay where they are, 240 * 128 * k: below 2^31 up to 65793.
constexpr int64_t MaxK(Format format) {
  return format == Format::kI8 || format == Format::kI4 ? int64_t{1} << 16 : int64_t{1} << 22;
}
constexpr int64_t kMaxK = int64_t{1} << 22;

// What is taken off a digit to give the weight (twice the digit with b1).
constexpr int DigitOffset(Format format) {
  return format == Format::kI8 ? 128 : format == Format::kI4 ? 8 : 1;
}

// "t2", "t5", "b1", "i8", "i4". Returns false, and leaves *out alone, for any other token (or
// null).
bool ParseFormat(const char* token, Format* out);
const char* FormatToken(Format format);

// Weights per byte: 4, 5, 8, 1, 2.
constexpr int FieldsPerByte(Format format) {
  return format == Format::kT2   ? 4
         : format == Format::kT5 ? 5
         : format == Format::kB1 ? 8
         : format == Format::kI8 ? 1
                                 : 2;
}

// Bytes of a last block that holds r weights, 0 <= r < 64 * FieldsPerByte(format).
constexpr int64_t ShortBlockBytes(Format format, int64_t r) {
  const int64_t weights_of_4_bytes = 4 * FieldsPerByte(format);
  return (r + weights_of_4_bytes - 1) / weights_of_4_bytes * 4;
}

// Bytes of a packed row of k >= 0 weights.
constexpr int64_t RowBytes(Format format, int64_t k) {
  const int64_t block_weights = kBlockBytes * FieldsPerByte(format);
  return k / block_weights * kBlockBytes + ShortBlockBytes(format, k % block_weights);
}

// Writes the k weights of a row: -1, 0, +1, or -128 to 127 (i8), -8 to 7 (i4). This function is the
// specification of the formats. A t2 code 3 reads as +2 and a t5 byte above 242 as one with digit 4
// = 2 and the other digits modulo 3: defined, so that bytes nobody checked stay harmless, but
// FindInvalidByte finds them.
void UnpackRow(Format format, const uint8_t* row, int64_t k, int8_t* out);

// Index of the first byte of the row that holds no code (t2: a bit pair 3, t5: above 242), or -1
// when the row is valid; every byte of b1, i8 and i4 is. Padding is not looked at beyond that: no
// kernel reads it.
int64_t FindInvalidByte(Format format, const uint8_t* row, int64_t k);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_FORMAT_H_
