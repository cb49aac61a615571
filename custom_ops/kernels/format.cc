#include "custom_ops/kernels/format.h"

#include <algorithm>
#include <cstring>

namespace tfmot_ternary {
namespace {

constexpr const char* kTokens[kFormatCount] = {"t2", "t5", "b1"};

// kPower = 3^f: dividing by a constant becomes a multiplication.
template <int kPower>
void UnpackDigit(const uint8_t* bytes, int64_t count, int8_t* out) {
  for (int64_t j = 0; j < count; ++j) {
    const int digits = bytes[j] / kPower;  // of the fields from f on
    out[j] = static_cast<int8_t>((kPower < 81 ? digits % 3 : digits < 2 ? digits : 2) - 1);
  }
}

// Weights of field f of `count` bytes.
void UnpackField(Format format, const uint8_t* bytes, int64_t count, int f, int8_t* out) {
  using Digit = void (*)(const uint8_t* bytes, int64_t count, int8_t* out);
  static constexpr Digit kDigits[5] = {UnpackDigit<1>, UnpackDigit<3>, UnpackDigit<9>,
                                       UnpackDigit<27>, UnpackDigit<81>};
  switch (format) {
    case Format::kT2:
      for (int64_t j = 0; j < count; ++j) {
        out[j] = static_cast<int8_t>(((bytes[j] >> (2 * f)) & 3) - 1);
      }
      break;
    case Format::kT5:
      kDigits[f](bytes, count, out);
      break;
    case Format::kB1:
      for (int64_t j = 0; j < count; ++j) {
        out[j] = static_cast<int8_t>(2 * ((bytes[j] >> f) & 1) - 1);
      }
      break;
  }
}

}  // namespace

bool ParseFormat(const char* token, Format* out) {
  if (token == nullptr) return false;
  for (int i = 0; i < kFormatCount; ++i) {
    if (std::strcmp(token, kTokens[i]) == 0) {
      *out = static_cast<Format>(i);
      return true;
    }
  }
  return false;
}

const char* FormatToken(Format format) { return kTokens[static_cast<int>(format)]; }

void UnpackRow(Format format, const uint8_t* row, int64_t k, int8_t* out) {
  const int fields = FieldsPerByte(format);
  const int64_t block_weights = kBlockBytes * fields;
  for (int64_t begin = 0; begin < k; begin += block_weights) {
    const int64_t rest = k - begin;
    const int64_t size = rest < block_weights ? ShortBlockBytes(format, rest) : kBlockBytes;
    for (int f = 0; f < fields && f * size < rest; ++f) {
      const int64_t count = std::min(size, rest - f * size);  // the rest is padding
      UnpackField(format, row, count, f, out + begin + f * size);
    }
    row += size;
  }
}

int64_t FindInvalidByte(Format format, const uint8_t* row, int64_t k) {
  const int64_t bytes = RowBytes(format, k);
  for (int64_t i = 0; i < bytes; ++i) {
    const uint8_t byte = row[i];
    if (format == Format::kT2 && (byte & (byte >> 1) & 0x55) != 0) return i;
    if (format == Format::kT5 && byte > 242) return i;
  }
  return -1;
}

}  // namespace tfmot_ternary
