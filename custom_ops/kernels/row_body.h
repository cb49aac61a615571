// The bodies of RowFunctions, written once. A file that wants them for its instruction set says
//
//   TFMOT_TERNARY_DEFINE_ROW_FUNCTIONS(Avx2Row, __attribute__((target("avx2"))), Transpose)
//
// with the function for RowFunctions::transpose, which moves values only.
//
// The bodies are loops that compilers vectorise; every operation is an IEEE float32 operation whose
// order does not depend on the vector width (but for `dot`, whose order is fixed to 16 chains), and
// the build forbids contraction to FMA, so that all compilations agree bit for bit.
#ifndef TFMOT_TERNARY_KERNELS_ROW_BODY_H_
#define TFMOT_TERNARY_KERNELS_ROW_BODY_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/row.h"

#define TFMOT_TERNARY_INLINE inline __attribute__((always_inline))

namespace tfmot_ternary {
namespace row_body {

TFMOT_TERNARY_INLINE uint32_t LargestBits(const float* x, int64_t count) {
  // Floats without sign order like their bits; infinity and NaN come last.
  int32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return static_cast<uint32_t>(largest);
}

TFMOT_TERNARY_INLINE void Quantize(const float* x, int64_t count, float inverse, int8_t* q) {
  // |x * inverse| < 127.01. Adding 1.5 * 2^23 leaves no bits below one, so the addition rounds half
  // to even, and the low bits of the sum are the integer.
  constexpr float kMagic = 12582912.0f;
  constexpr int32_t kMagicBits = 0x4b400000;
  for (int64_t i = 0; i < count; ++i) {
    const float shifted = x[i] * inverse + kMagic;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    int32_t value = bits - kMagicBits;
    value = value > 127 ? 127 : value;
    value = value < -127 ? -127 : value;
    q[i] = static_cast<int8_t>(value);
  }
}

TFMOT_TERNARY_INLINE void SumGroups(const int8_t* q, int64_t k, int64_t group_size, int32_t* sums) {
  int64_t g = 0;
  for (int64_t begin = 0; begin < k; begin += group_size, ++g) {
    const int64_t end = std::min(k, begin + group_size);
    int32_t sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += q[i];
    sums[g] = sum;
  }
}

TFMOT_TERNARY_INLINE float Activate(float y, Activation activation) {
  // A NaN fails both comparisons and stays.
  if (activation != Activation::kNone) y = y < 0.0f ? 0.0f : y;
  if (activation == Activation::kRelu6) y = y > 6.0f ? 6.0f : y;
  return y;
}

template <bool kOneScale, bool kBias>
TFMOT_TERNARY_INLINE void FinishAs(const int32_t* acc, int count, float scale_x,
                                   const float* scales, const float* bias, Activation activation,
                                   float* y) {
  for (int r = 0; r < count; ++r) {
    const float scale = scale_x * (kOneScale ? scales[0] : scales[r]);
    float value = static_cast<float>(acc[r]) * scale;
    if (kBias) value = value + bias[r];
    y[r] = value;
  }
  if (activation == Activation::kNone) return;
  for (int r = 0; r < count; ++r) y[r] = Activate(y[r], activation);
}

TFMOT_TERNARY_INLINE void Finish(const int32_t* acc, int count, float scale_x, const float* scales,
                                 bool one_scale, const float* bias, Activation activation,
                                 float* y) {
  if (one_scale) {
    if (bias != nullptr) {
      FinishAs<true, true>(acc, count, scale_x, scales, bias, activation, y);
    } else {
      FinishAs<true, false>(acc, count, scale_x, scales, bias, activation, y);
    }
  } else if (bias != nullptr) {
    FinishAs<false, true>(acc, count, scale_x, scales, bias, activation, y);
  } else {
    FinishAs<false, false>(acc, count, scale_x, scales, bias, activation, y);
  }
}

TFMOT_TERNARY_INLINE void Transpose(const float* scales, int rows, int64_t groups, float* out) {
  for (int r = 0; r < kTileRows; ++r) {
    const float* from = scales + std::min(r, rows - 1) * groups;
    for (int64_t g = 0; g < groups; ++g) out[g * kTileRows + r] = from[g];
  }
}

TFMOT_TERNARY_INLINE void AddGroups(const int32_t* acc, const float* scales, int64_t groups,
                                    float* sums) {
  float local[kTileRows];
  for (int r = 0; r < kTileRows; ++r) local[r] = sums[r];
  for (int64_t g = 0; g < groups; ++g) {
    for (int r = 0; r < kTileRows; ++r) {
      const float product = static_cast<float>(acc[g * kTileRows + r]) * scales[g * kTileRows + r];
      local[r] = local[r] + product;
    }
  }
  for (int r = 0; r < kTileRows; ++r) sums[r] = local[r];
}

TFMOT_TERNARY_INLINE void FinishGroups(const float* sums, int count, float scale_x,
                                       const float* bias, Activation activation, float* y) {
  for (int r = 0; r < count; ++r) y[r] = sums[r] * scale_x;
  if (bias != nullptr) {
    for (int r = 0; r < count; ++r) y[r] = y[r] + bias[r];
  }
  if (activation == Activation::kNone) return;
  for (int r = 0; r < count; ++r) y[r] = Activate(y[r], activation);
}

// Steps of a fixed size are vector moves, where memcpy is a call for each run.
TFMOT_TERNARY_INLINE void CopyPatches(const Patches& patches, int64_t count, int64_t to_step,
                                      uint8_t* to) {
  const int64_t bytes = patches.run_bytes;
  const int64_t whole = bytes / 64 * 64;
  for (int64_t p = 0; p < count; ++p) {
    const uint8_t* from = patches.first + p * patches.step;
    uint8_t* out = to + p * to_step;
    for (int64_t r = 0; r < patches.runs; ++r, from += patches.run_step, out += bytes) {
      for (int64_t i = 0; i < whole; i += 64) std::memcpy(out + i, from + i, 64);
      if (whole == bytes) continue;
      int64_t i = whole;
      if (bytes & 32) std::memcpy(out + i, from + i, 32), i += 32;
      if (bytes & 16) std::memcpy(out + i, from + i, 16), i += 16;
      if (bytes & 8) std::memcpy(out + i, from + i, 8), i += 8;
      if (bytes & 4) std::memcpy(out + i, from + i, 4), i += 4;
      for (; i < bytes; ++i) out[i] = from[i];
    }
  }
}

TFMOT_TERNARY_INLINE float Dot(const float* x, const int8_t* w, int64_t count) {
  constexpr int kChains = 16;
  float chains[kChains] = {};
  int64_t i = 0;
  for (; i + kChains <= count; i += kChains) {
    for (int j = 0; j < kChains; ++j) chains[j] += x[i + j] * static_cast<float>(w[i + j]);
  }
  for (int j = 0; i + j < count; ++j) chains[j] += x[i + j] * static_cast<float>(w[i + j]);
  for (int half = kChains / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) chains[j] += chains[j + half];
  }
  return chains[0];
}

TFMOT_TERNARY_INLINE void Scale(const int8_t* w, int64_t count, float scale, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(w[i]) * scale;
}

}  // namespace row_body
}  // namespace tfmot_ternary

// Defines `extern const RowFunctions name` in the namespace of the place of use.
#define TFMOT_TERNARY_DEFINE_ROW_FUNCTIONS(name, target, transpose)                               \
  namespace name##_detail {                                                                       \
    target uint32_t LargestBits(const float* x, int64_t count) {                                  \
      return row_body::LargestBits(x, count);                                                     \
    }                                                                                             \
    target void Quantize(const float* x, int64_t count, float inverse, int8_t* q) {               \
      row_body::Quantize(x, count, inverse, q);                                                   \
    }                                                                                             \
    target void SumGroups(const int8_t* q, int64_t k, int64_t group_size, int32_t* sums) {        \
      row_body::SumGroups(q, k, group_size, sums);                                                \
    }                                                                                             \
    target void Finish(const int32_t* acc, int count, float scale_x, const float* scales,         \
                       bool one_scale, const float* bias, Activation activation, float* y) {      \
      if (count == kTileRows) { /* a constant count, so that the loops unroll */                  \
        row_body::Finish(acc, kTileRows, scale_x, scales, one_scale, bias, activation, y);        \
      } else {                                                                                    \
        row_body::Finish(acc, count, scale_x, scales, one_scale, bias, activation, y);            \
      }                                                                                           \
    }                                                                                             \
    target void AddGroups(const int32_t* acc, const float* scales, int64_t groups, float* sums) { \
      row_body::AddGroups(acc, scales, groups, sums);                                             \
    }                                                                                             \
    target void FinishGroups(const float* sums, int count, float scale_x, const float* bias,      \
                             Activation activation, float* y) {                                   \
      row_body::FinishGroups(sums, count, scale_x, bias, activation, y);                          \
    }                                                                                             \
    target void CopyPatches(const Patches& patches, int64_t count, int64_t step, uint8_t* to) {   \
      row_body::CopyPatches(patches, count, step, to);                                            \
    }                                                                                             \
    target float Dot(const float* x, const int8_t* w, int64_t count) {                            \
      return row_body::Dot(x, w, count);                                                          \
    }                                                                                             \
    target void Scale(const int8_t* w, int64_t count, float scale, float* out) {                  \
      row_body::Scale(w, count, scale, out);                                                      \
    }                                                                                             \
  }                                                                                               \
  extern const RowFunctions name;                                                                 \
  const RowFunctions name = {                                                                     \
      name##_detail::LargestBits,                                                                 \
      name##_detail::Quantize,                                                                    \
      name##_detail::SumGroups,                                                                   \
      name##_detail::Finish,                                                                      \
      transpose,                                                                                  \
      name##_detail::AddGroups,                                                                   \
      name##_detail::FinishGroups,                                                                \
      name##_detail::CopyPatches,                                                                 \
      name##_detail::Dot,                                                                         \
      name##_detail::Scale,                                                                       \
  };

#endif  // TFMOT_TERNARY_KERNELS_ROW_BODY_H_
