// AVX2: norms, activations, rotary embedding.
#if defined(__x86_64__)

#include "custom_ops/kernels/fused_body.h"

namespace tfmot_ternary {

TFMOT_TERNARY_DEFINE_FUSED(Avx2Fused, __attribute__((target("avx2"))))

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
