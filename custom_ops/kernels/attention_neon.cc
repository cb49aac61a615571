// NEON of every ARM64 CPU: attention.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#define TFMOT_TERNARY_ATTENTION_TARGET
#include "custom_ops/kernels/attention_body.h"

namespace tfmot_ternary {
namespace {

struct NeonIsa {
  static constexpr int kRows = 6;
  static constexpr int kColumns = 1;
  static constexpr int kNarrow = 2;
  static constexpr int kCodeRows = 2;

  struct Floats {
    float32x4_t a, b, c, d;
  };

  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const float* x) {
    return {vld1q_f32(x), vld1q_f32(x + 4), vld1q_f32(x + 8), vld1q_f32(x + 12)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float32x4_t Widen(const uint16_t* x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const uint16_t* x) {
    return {Widen(x), Widen(x + 4), Widen(x + 8), Widen(x + 12)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Load(const int8_t* x) {
    const int8x16_t codes = vld1q_s8(x);
    const int16x8_t low = vmovl_s8(vget_low_s8(codes));
    const int16x8_t high = vmovl_s8(vget_high_s8(codes));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
            vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE void Store(float* to, Floats x) {
    vst1q_f32(to, x.a);
    vst1q_f32(to + 4, x.b);
    vst1q_f32(to + 8, x.c);
    vst1q_f32(to + 12, x.d);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE void StoreHalf(uint16_t* to, Floats x) {
    vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(x.a)));
    vst1_u16(to + 4, vreinterpret_u16_f16(vcvt_f16_f32(x.b)));
    vst1_u16(to + 8, vreinterpret_u16_f16(vcvt_f16_f32(x.c)));
    vst1_u16(to + 12, vreinterpret_u16_f16(vcvt_f16_f32(x.d)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Broadcast(float x) {
    const float32x4_t vector = vdupq_n_f32(x);
    return {vector, vector, vector, vector};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Zero() { return Broadcast(0.0f); }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Fma(Floats x, Floats y, Floats z) {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
            vfmaq_f32(z.d, x.d, y.d)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Add(Floats x, Floats y) {
    return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c), vaddq_f32(x.d, y.d)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Mul(Floats x, Floats y) {
    return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c), vmulq_f32(x.d, y.d)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Max(Floats x, Floats y) {
    return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b), vmaxq_f32(x.c, y.c), vmaxq_f32(x.d, y.d)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float32x4_t AddPower(float32x4_t x, float32x4_t shifted) {
    const int32x4_t power = vshlq_n_s32(vreinterpretq_s32_f32(shifted), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), power));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats AddPower(Floats x, Floats shifted) {
    return {AddPower(x.a, shifted.a), AddPower(x.b, shifted.b), AddPower(x.c, shifted.c),
            AddPower(x.d, shifted.d)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float32x4_t KeepFrom(float32x4_t x, float32x4_t limit,
                                                             float32x4_t value) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vcltq_f32(x, limit)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats KeepFrom(Floats x, Floats limit, Floats value) {
    return {KeepFrom(x.a, limit.a, value.a), KeepFrom(x.b, limit.b, value.b),
            KeepFrom(x.c, limit.c, value.c), KeepFrom(x.d, limit.d, value.d)};
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float Largest(Floats x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.a, x.b), vmaxq_f32(x.c, x.d)));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE float Sum(Floats x) {
    return vaddvq_f32(vaddq_f32(vaddq_f32(x.a, x.b), vaddq_f32(x.c, x.d)));
  }

  // Two sums for each position, of two positions in a register.
  struct Sums {
    int32x4_t a, b, c, d, e, f, g, h;
  };

  static TFMOT_TERNARY_ATTENTION_INLINE Sums ZeroSums() {
    const int32x4_t zero = vdupq_n_s32(0);
    return {zero, zero, zero, zero, zero, zero, zero, zero};
  }
  // Four positions. Keys as codes without the 128, which Finish would take off again.
  static TFMOT_TERNARY_ATTENTION_INLINE void AddFour(const uint8_t* keys, int8x8_t codes,
                                                     int32x4_t* low, int32x4_t* high) {
    const int8x16_t bytes = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(keys), vdupq_n_u8(0x80)));
    *low = vpadalq_s16(*low, vmull_s8(vget_low_s8(bytes), codes));
    *high = vpadalq_s16(*high, vmull_s8(vget_high_s8(bytes), codes));
  }
  static TFMOT_TERNARY_ATTENTION_INLINE void AddProducts(const uint8_t* keys, const int8_t* codes,
                                                         Sums* sums) {
    int32_t four;
    std::memcpy(&four, codes, sizeof(four));
    const int8x8_t twice = vreinterpret_s8_s32(vdup_n_s32(four));
    AddFour(keys, twice, &sums->a, &sums->b);
    AddFour(keys + 16, twice, &sums->c, &sums->d);
    AddFour(keys + 32, twice, &sums->e, &sums->f);
    AddFour(keys + 48, twice, &sums->g, &sums->h);
  }
  static TFMOT_TERNARY_ATTENTION_INLINE Floats Finish(Sums sums, int32_t) {
    return {vcvtq_f32_s32(vpaddq_s32(sums.a, sums.b)), vcvtq_f32_s32(vpaddq_s32(sums.c, sums.d)),
            vcvtq_f32_s32(vpaddq_s32(sums.e, sums.f)), vcvtq_f32_s32(vpaddq_s32(sums.g, sums.h))};
  }
};

}  // namespace

extern const AttentionFunctions NeonAttention;
const AttentionFunctions NeonAttention = {attention_body::Attend<NeonIsa>,
                                          attention_body::ToHalf<NeonIsa>};

}  // namespace tfmot_ternary

#endif  // defined(__aarch64__)
