// Activation functions of every value of a tensor.
#ifndef TFMOT_TERNARY_KERNELS_ACTIVATION_H_
#define TFMOT_TERNARY_KERNELS_ACTIVATION_H_

#include <cstdint>

#include "custom_ops/kernels/fused.h"
#include "custom_ops/kernels/thread_pool.h"

namespace tfmot_ternary {

// out[count] = kind(x[count]). Error bounds: activation_body.h.
void ActivateAll(const float* x, int64_t count, ActivationKind kind,
                 const FusedFunctions& functions, ThreadPool* pool, float* out);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ACTIVATION_H_
