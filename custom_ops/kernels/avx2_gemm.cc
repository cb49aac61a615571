// AVX2 kernels of the integer product.
#if defined(__x86_64__)

#include "custom_ops/kernels/avx2.h"
#include "custom_ops/kernels/prefill_body.h"

namespace tfmot_ternary {

TFMOT_TERNARY_DEFINE_GEMM(avx2, T2, Avx2, T2Codes, PairDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, T5, Avx2, T5Codes, PairDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, B1, Avx2, B1Codes, PairDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, I8, Avx2, I8Codes, WideDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, I4, Avx2, I4Codes, WideDot)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
