// exp for loops that compilers vectorise: no branch, no table, no library call.
#ifndef TFMOT_TERNARY_KERNELS_VECTOR_EXP_H_
#define TFMOT_TERNARY_KERNELS_VECTOR_EXP_H_

#include <cstdint>
#include <cstring>

namespace tfmot_ternary {

// condition ? a : b without a branch: compilers do not vectorise a loop in which one of the two may
// be skipped.
inline __attribute__((always_inline)) float VectorSelect(bool condition, float a, float b) {
  int32_t bits_a, bits_b;
  std::memcpy(&bits_a, &a, sizeof(a));
  std::memcpy(&bits_b, &b, sizeof(b));
  const int32_t mask = -static_cast<int32_t>(condition);
  const int32_t bits = (bits_a & mask) | (bits_b & ~mask);
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// e^x with a relative error below 2e-7. Results below the smallest normal number are 0, those
// beyond the largest are infinity; NaN stays. Every step is an IEEE float32 operation in a fixed
// order: with -ffp-contract=off, all instruction sets give the same bits.
inline __attribute__((always_inline)) float VectorExp(float x) {
  constexpr float kLowest = -87.3365f;  // e^kLowest is just above the smallest normal number
  constexpr float kHighest = 89.0f;
  constexpr float kLog2E = 1.44269504f;
  // ln 2 in two parts: n * kLn2High is exact, because its last 15 bits are zero.
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 leaves no bits below one: the sum's low bits are the nearest integer.
  constexpr float kMagic = 12582912.0f;
  constexpr int32_t kMagicBits = 0x4b400000;

  float clamped = VectorSelect(x < kLowest, kLowest, x);
  clamped = VectorSelect(clamped > kHighest, kHighest, clamped);
  const float shifted = clamped * kLog2E + kMagic;
  const float n = shifted - kMagic;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  // e^r = 1 + r + r^2 p(r) for |r| <= ln 2 / 2, p fitted to a relative error of 3e-9.
  float p = 1.38144672e-3f;
  p = p * r + 8.36878084e-3f;
  p = p * r + 4.16683927e-2f;
  p = p * r + 1.66665196e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n as a product of two powers: n may be 128, which is no exponent.
  int32_t exponent;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  exponent -= kMagicBits;
  const int32_t half = exponent >> 1;
  const int32_t low_bits = static_cast<int32_t>(static_cast<uint32_t>(half + 127) << 23);
  const int32_t high_bits =
      static_cast<int32_t>(static_cast<uint32_t>(exponent - half + 127) << 23);
  float low, high;
  std::memcpy(&low, &low_bits, sizeof(low));
  std::memcpy(&high, &high_bits, sizeof(high));
  const float value = p * low * high;
  return VectorSelect(x < kLowest, 0.0f, value);
}

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_VECTOR_EXP_H_
