// AVX-512: norms, activations, rotary embedding.
#if defined(__x86_64__)

#include "custom_ops/kernels/fused_body.h"

namespace tfmot_ternary {

TFMOT_TERNARY_DEFINE_FUSED(
    Avx512Fused,
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
