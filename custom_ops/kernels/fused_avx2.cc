// AVX2: norms, activations, rotary embedding.
#if defined(__x86_64__)

#include "custom_ops/kernels/fused_body.h"

namespace tfmot_ternary {
namespace {

__attribute__((target("avx2"))) void Activate(const float* x, int64_t count, ActivationKind kind,
                                              float* out) {
  activation_body::Activate(x, count, kind, out);
}

}  // namespace

TFMOT_TERNARY_DEFINE_FUSED(Avx2Fused, __attribute__((target("avx2"))), Activate)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
