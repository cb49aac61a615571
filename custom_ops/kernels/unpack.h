// Packed rows back to float32: whole matrices and looked-up rows.
#ifndef TFMOT_TERNARY_KERNELS_UNPACK_H_
#define TFMOT_TERNARY_KERNELS_UNPACK_H_

#include <cstdint>

#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/thread_pool.h"
#include "custom_ops/kernels/weights.h"

namespace tfmot_ternary {

// out: [n, k], out[i, j] = code * scale.
void Unpack(const PackedWeights& weights, const Kernels& kernels, ThreadPool* pool, float* out);

// out: [count, k], row i is row ids[i] of the weights. Returns -1, or the index of the first id
// outside [0, n); out is then unspecified.
int64_t EmbeddingLookup(const PackedWeights& weights, const int32_t* ids, int64_t count,
                        const Kernels& kernels, ThreadPool* pool, float* out);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_UNPACK_H_
