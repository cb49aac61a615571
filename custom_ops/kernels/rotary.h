// Rotary embedding of a sequence.
#ifndef TFMOT_TERNARY_KERNELS_ROTARY_H_
#define TFMOT_TERNARY_KERNELS_ROTARY_H_

#include <cstdint>

#include "custom_ops/kernels/fused.h"
#include "custom_ops/kernels/thread_pool.h"

namespace tfmot_ternary {

// What is rotated, and by how much.
struct RotaryProblem {
  int64_t batch, length, heads, width;  // x, out: [batch, length, heads, width]
  int64_t pairs;                        // the first 2 * pairs values of a head are rotated
  const float* inverse_frequencies;     // [pairs]
  const int32_t* positions;             // one for each row of the sequence, or the first one's
  bool position_per_row;
  float amplitude;
  PairLayout input_layout, output_layout;
};

// Rotates pair i of row t by position(t) * inverse_frequencies[i] radians (rounded to float32) and
// multiplies it by the amplitude; copies what is behind the pairs. The error of a value is below
// 2e-7 amplitude (|a| + |b|), a and b being its pair, for angles below 2^20.
void Rotary(const RotaryProblem& problem, const float* x, const FusedFunctions& functions,
            ThreadPool* pool, float* out);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ROTARY_H_
