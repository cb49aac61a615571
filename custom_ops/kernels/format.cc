#include "custom_ops/kernels/format.h"

#include <algorithm>
#include <cstring>

namespace tfmot_ternary {
namespace {

constexpr const char* kTokens[kFormatCount] = {"t2", "t5", "b1", "i8", "i4"};

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
    case Format::kI8:
      for (int64_t j = 0; j < count; ++j) out[j] = static_cast<int8_t>(bytes[j] - 128);
      break;
    case Format::kI4:
      for (int64_t j = 0; j < count; ++j) {
        out[j] = static_cast<int8_t>(((bytes[j] >> (4 * f)) & 15) - 8);
      }
      break;
  }
}

// Whether one of the bit pairs of `count` bytes is 3.
bool AnyPair3(const uint8_t* bytes, int64_t count) {
  uint64_t found = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    found |= word & (word >> 1);  // what a bit gets from the next byte is masked below
  }
  for (; i < count; ++i) found |= static_cast<uint64_t>(bytes[i] & (bytes[i] >> 1));
  return (found & 0x5555555555555555u) != 0;
}

uint8_t Largest(const uint8_t* bytes, int64_t count) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, bytes[i]);
  return largest;
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
  if (format != Format::kT2 && format != Format::kT5) return -1;
  const int64_t bytes = RowBytes(format, k);
  // A run of bytes is looked at as a whole first, which compilers turn into vector code: at load
  // all weights of a model pass here.
  constexpr int64_t kRun = 1024;
  for (int64_t begin = 0; begin < bytes; begin += kRun) {
    const int64_t end = std::min(bytes, begin + kRun);
    if (format == Format::kT2 ? !AnyPair3(row + begin, end - begin)
                              : Largest(row + begin, end - begin) <= 242) {
      continue;
    }
    for (int64_t i = begin; i < end; ++i) {
      if (format == Format::kT2 ? AnyPair3(row + i, 1) : row[i] > 242) return i;
    }
  }
  return -1;
}

}  // namespace tfmot_ternary
