// The formats: sizes, the worked example of g3doc/packing.md, round trips, bytes without a code.
#include "custom_ops/kernels/format.h"

#include <algorithm>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 1;

void CheckTokens() {
  for (Format format : kFormats) {
    Format parsed = format == Format::kT2 ? Format::kB1 : Format::kT2;
    CHECK_TRUE(ParseFormat(FormatToken(format), &parsed), FormatToken(format));
    CHECK_TRUE(parsed == format, FormatToken(format));
  }
  for (const char* wrong : {"", "t", "t3", "T2", "t2 ", "b", "i2"}) {
    Format format = Format::kT5;
    CHECK_TRUE(!ParseFormat(wrong, &format) && format == Format::kT5, wrong);
  }
  Format format = Format::kT5;
  CHECK_TRUE(!ParseFormat(nullptr, &format), "null");
}

// The row + 0 - + + - 0 of g3doc/packing.md.
void CheckWorkedExample() {
  const std::vector<int8_t> codes = {1, 0, -1, 1, 1, -1, 0};
  const std::vector<uint8_t> t2 = {0x5a, 0x51, 0x54, 0x56};
  const std::vector<uint8_t> t5 = {125, 118, 120, 122};
  for (int i = 0; i < 2; ++i) {
    const Format format = i == 0 ? Format::kT2 : Format::kT5;
    const std::vector<uint8_t>& bytes = i == 0 ? t2 : t5;
    std::vector<uint8_t> packed(RowBytes(format, 7));
    PackRow(format, codes, packed.data());
    CHECK_TRUE(packed == bytes, FormatToken(format));
    std::vector<int8_t> unpacked(7);
    UnpackRow(format, bytes.data(), 7, unpacked.data());
    CHECK_TRUE(unpacked == codes, FormatToken(format));
  }
  // Binary: + - - + + - + .
  const std::vector<int8_t> binary = {1, -1, -1, 1, 1, -1, 1};
  const std::vector<uint8_t> b1 = {0x03, 0x00, 0x02, 0x01};
  std::vector<uint8_t> packed(RowBytes(Format::kB1, 7));
  PackRow(Format::kB1, binary, packed.data());
  CHECK_TRUE(packed == b1, "b1");
  std::vector<int8_t> unpacked(7);
  UnpackRow(Format::kB1, b1.data(), 7, unpacked.data());
  CHECK_TRUE(unpacked == binary, "b1");
}

void CheckSizes() {
  CHECK_EQUAL(RowBytes(Format::kT2, 256), 64, "t2");
  CHECK_EQUAL(RowBytes(Format::kT2, 257), 68, "t2");
  CHECK_EQUAL(RowBytes(Format::kT2, 2048), 512, "t2");
  CHECK_EQUAL(RowBytes(Format::kT5, 256), 52, "t5");
  CHECK_EQUAL(RowBytes(Format::kT5, 320), 64, "t5");
  CHECK_EQUAL(RowBytes(Format::kT5, 2048), 412, "t5");
  CHECK_EQUAL(RowBytes(Format::kB1, 1), 4, "b1");
  CHECK_EQUAL(RowBytes(Format::kB1, 2048), 256, "b1");
  CHECK_EQUAL(RowBytes(Format::kI8, 2048), 2048, "i8");
  CHECK_EQUAL(RowBytes(Format::kI8, 65), 68, "i8");
  CHECK_EQUAL(RowBytes(Format::kI4, 2048), 1024, "i4");
  CHECK_EQUAL(RowBytes(Format::kI4, 129), 68, "i4");
  // At most 1.7 bits per weight in t5 for multiples of 256.
  for (int64_t k = 256; k <= 65536; k += 256) {
    CHECK_TRUE(80 * RowBytes(Format::kT5, k) <= 17 * 8 * k, "k=" + std::to_string(k));
  }
}

void CheckRoundTrips() {
  Random random(kSeed);
  for (Format format : kFormats) {
    for (int64_t k = 1; k <= 1300; k = k < 700 ? k + 1 : k + 67) {
      const std::string context = std::string(FormatToken(format)) + " k=" + std::to_string(k) +
                                  " seed=" + std::to_string(kSeed);
      const std::vector<int8_t> codes = MakeCodes(format, k, WeightPattern::kRandom, &random);
      Aligned<uint8_t> packed(RowBytes(format, k));
      PackRow(format, codes, packed.data());
      std::vector<int8_t> unpacked(k);
      UnpackRow(format, packed.data(), k, unpacked.data());
      CHECK_TRUE(unpacked == codes, context);
      CHECK_EQUAL(FindInvalidByte(format, packed.data(), k), -1, context);
    }
  }
}

// At every place of a row of several runs and of a rest.
void CheckPlacesOfInvalidBytes() {
  constexpr int64_t kBytes = 2 * 1024 + 77;
  for (Format format : {Format::kT2, Format::kT5}) {
    const int64_t k = kBytes / kBlockBytes * kBlockBytes * FieldsPerByte(format) +
                      kBytes % kBlockBytes * FieldsPerByte(format);
    Aligned<uint8_t> row(RowBytes(format, k));
    for (int64_t i = 0; i < RowBytes(format, k); ++i) row.data()[i] = 0;
    for (int64_t i = 0; i < RowBytes(format, k); ++i) {
      row.data()[i] = format == Format::kT2 ? 0xC0 : 243;
      CHECK_EQUAL(FindInvalidByte(format, row.data(), k), i, FormatToken(format));
      row.data()[i] = format == Format::kT2 ? 0xAA : 242;
      CHECK_EQUAL(FindInvalidByte(format, row.data(), k), -1, FormatToken(format));
    }
  }
}

void CheckInvalidBytes() {
  for (int value = 0; value < 256; ++value) {
    uint8_t row[68] = {};
    row[67] = static_cast<uint8_t>(value);
    bool pair3 = false;
    for (int f = 0; f < 4; ++f) pair3 = pair3 || ((value >> (2 * f)) & 3) == 3;
    CHECK_EQUAL(FindInvalidByte(Format::kT2, row, 257), pair3 ? 67 : -1, std::to_string(value));
    CHECK_EQUAL(FindInvalidByte(Format::kT5, row, 321), value > 242 ? 67 : -1,
                std::to_string(value));
    CHECK_EQUAL(FindInvalidByte(Format::kB1, row, 513), -1, std::to_string(value));
    CHECK_EQUAL(FindInvalidByte(Format::kI8, row, 65), -1, std::to_string(value));
    CHECK_EQUAL(FindInvalidByte(Format::kI4, row, 129), -1, std::to_string(value));
    // Byte 67: the last weight of i8, and of i4 weight 131, whose row is longer by the upper digit.
    int8_t codes[136];
    UnpackRow(Format::kI8, row, 68, codes);
    CHECK_EQUAL(codes[67], value - 128, std::to_string(value));
    UnpackRow(Format::kI4, row, 136, codes);
    CHECK_EQUAL(codes[131], value % 16 - 8, std::to_string(value));
    CHECK_EQUAL(codes[135], value / 16 - 8, std::to_string(value));
  }
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::CheckTokens();
  tfmot_ternary::CheckWorkedExample();
  tfmot_ternary::CheckSizes();
  tfmot_ternary::CheckRoundTrips();
  tfmot_ternary::CheckInvalidBytes();
  tfmot_ternary::CheckPlacesOfInvalidBytes();
  return tfmot_ternary::Finish("format_test");
}
