// Seeded data for the tests, in buffers of exactly the size that is promised to the kernels, so
// that AddressSanitizer sees every byte read beyond.
#ifndef TFMOT_TERNARY_KERNELS_TEST_DATA_H_
#define TFMOT_TERNARY_KERNELS_TEST_DATA_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/kernels/format.h"
#include "custom_ops/kernels/weights.h"

namespace tfmot_ternary {

// splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Uniform in [low, high].
  int64_t Integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  // Uniform in [-1, 1).
  float Float() { return static_cast<float>(static_cast<int32_t>(Next() >> 32)) / 2147483648.0f; }

 private:
  uint64_t state_;
};

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// 64-byte aligned memory; the sanitizers watch its end to the byte.
template <typename T>
class Aligned {
 public:
  explicit Aligned(int64_t count) : size_(count) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, static_cast<size_t>(count > 0 ? count : 1) * sizeof(T)) != 0) {
      std::abort();
    }
    data_.reset(static_cast<T*>(p));
  }
  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  std::unique_ptr<T, FreeDeleter> data_;
  int64_t size_;
};

// kPlus, kMinus: the largest and the smallest code of the format.
enum class WeightPattern { kRandom, kPlus, kMinus, kZero };

// Codes of one row. Binary rows have no zero: kZero alternates.
inline std::vector<int8_t> MakeCodes(Format format, int64_t k, WeightPattern pattern,
                                     Random* random) {
  std::vector<int8_t> codes(k);
  for (int64_t j = 0; j < k; ++j) {
    int code = 0;
    const int low = format == Format::kI8 ? -128 : format == Format::kI4 ? -8 : -1;
    const int high = low == -1 ? 1 : -low - 1;
    if (pattern == WeightPattern::kPlus) {
      code = high;
    } else if (pattern == WeightPattern::kMinus) {
      code = low;
    } else if (format == Format::kB1) {
      const bool plus = pattern == WeightPattern::kZero ? j % 2 == 0 : (random->Next() >> 63) != 0;
      code = plus ? 1 : -1;
    } else if (pattern == WeightPattern::kRandom) {
      code = static_cast<int>(random->Integer(low, high));
    }
    codes[j] = static_cast<int8_t>(code);
  }
  return codes;
}

// Packs a row from the words of g3doc/packing.md: weight by weight, the slow way.
inline void PackRow(Format format, const std::vector<int8_t>& codes, uint8_t* out) {
  static constexpr int kBase[kFormatCount] = {4, 3, 2, 256, 16};
  const int base = kBase[static_cast<int>(format)];
  const int fields = FieldsPerByte(format);
  const int64_t k = static_cast<int64_t>(codes.size());
  const int64_t bytes = RowBytes(format, k);
  for (int64_t i = 0; i < bytes; ++i) {
    const int64_t begin = i / 64 * 64 * fields;
    const int64_t size = bytes - i / 64 * 64 < 64 ? bytes - i / 64 * 64 : 64;
    int value = 0;
    int power = 1;
    for (int f = 0; f < fields; ++f, power *= base) {
      const int64_t j = begin + f * size + i % 64;
      const int code = j < k ? codes[j] : (format == Format::kB1 ? -1 : 0);
      value += power * (format == Format::kB1 ? (code + 1) / 2 : code + DigitOffset(format));
    }
    out[i] = static_cast<uint8_t>(value);
  }
}

constexpr Format kFormats[kFormatCount] = {Format::kT2, Format::kT5, Format::kB1, Format::kI8,
                                           Format::kI4};

// Around every vector width, block and group.
inline std::vector<int64_t> RowLengths() {
  return {1,   3,   4,   5,   15,  16,  17,   31,   32,   33,   47,   48,   49,   63,   64,
          65,  95,  96,  97,  127, 128, 129,  191,  193,  255,  256,  257,  319,  320,  321,
          383, 385, 511, 512, 513, 640, 1023, 1024, 1025, 1279, 1280, 1281, 2047, 2048, 2049};
}

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_TEST_DATA_H_
