// Norms over the last axis.
#ifndef TFMOT_TERNARY_KERNELS_NORMALIZATION_H_
#define TFMOT_TERNARY_KERNELS_NORMALIZATION_H_

#include <cstdint>

#include "custom_ops/kernels/fused.h"
#include "custom_ops/kernels/thread_pool.h"

namespace tfmot_ternary {

// out[rows, width] = x / sqrt(mean(x^2) + epsilon) * scale[width], row by row. The error is below
// (width / 64 + 8) 2^-24 |out|.
void RmsNorm(const float* x, int64_t rows, int64_t width, const float* scale, float epsilon,
             const FusedFunctions& functions, ThreadPool* pool, float* out);

// out[rows, width] = (x - mean) / sqrt(variance + epsilon) * gamma[width] + beta[width]. The error
// of the quotient is below (width / 16 + 16) 2^-24 max|x| / sqrt(variance + epsilon).
void LayerNorm(const float* x, int64_t rows, int64_t width, const float* gamma, const float* beta,
               float epsilon, const FusedFunctions& functions, ThreadPool* pool, float* out);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_NORMALIZATION_H_
