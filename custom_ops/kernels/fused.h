// Small float32 operators between the products: norms, activations, rotary embedding. What an
// instruction set does for them.
#ifndef TFMOT_TERNARY_KERNELS_FUSED_H_
#define TFMOT_TERNARY_KERNELS_FUSED_H_

#include <cstdint>

#include "custom_ops/kernels/cpu.h"

namespace tfmot_ternary {

enum class ActivationKind : uint8_t { kGelu, kGeluTanh, kSilu };

// Where the two values of a pair stand: apart by half of the rotated features, or side by side.
enum class PairLayout : uint8_t { kHalves, kPairs };

// "gelu", "gelu_tanh", "silu". Returns false for any other text, and for null.
bool ParseActivationKind(const char* token, ActivationKind* kind);

// "halves", "pairs".
bool ParsePairLayout(const char* token, PairLayout* layout);

// All sets of functions give the same bits (see fused_body.h), but for `activate`, which keeps the
// bounds of activation_body.h. No output overlaps an input.
struct FusedFunctions {
  // One row: out = x / sqrt(mean(x^2) + epsilon) * scale.
  void (*rms_norm)(const float* x, int64_t count, const float* scale, float epsilon, float* out);
  // One row: out = (x - mean) / sqrt(variance + epsilon) * gamma + beta.
  void (*layer_norm)(const float* x, int64_t count, const float* gamma, const float* beta,
                     float epsilon, float* out);
  void (*activate)(const float* x, int64_t count, ActivationKind kind, float* out);
  // amplitude times the cosine and sine of position * inverse_frequencies (rounded to float32).
  void (*waves)(const float* inverse_frequencies, int64_t count, float position, float amplitude,
                float* cosines, float* sines);
  // Pairs (a, b) -> (a cos - b sin, b cos + a sin). Pair i stands at [i] of both halves, or with
  // PairLayout::kPairs at [2 i] of first and second, which are then neighbours.
  void (*rotate)(const float* first, const float* second, int64_t count, PairLayout layout,
                 const float* cosines, const float* sines, PairLayout out_layout, float* out_first,
                 float* out_second);
};

struct FusedKernel {
  const char* name;
  CpuFlags cpu;
  const FusedFunctions* functions;
};

// The lines of fused.inc, best first.
const FusedKernel* FusedKernels(int* count);

// A pure function of its argument: the first line of fused.inc that fits.
const FusedFunctions* SelectFused(CpuFlags flags);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_FUSED_H_
