// AVX-VNNI kernels of the integer product: 256-bit vectors, vpdpbusd.
#if defined(__x86_64__)

#include "custom_ops/kernels/avx2.h"
#include "custom_ops/kernels/prefill_body.h"

namespace tfmot_ternary {

TFMOT_TERNARY_DEFINE_GEMM(avx2, T2, AvxVnni, T2Codes, VnniDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, T5, AvxVnni, T5Codes, VnniDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, B1, AvxVnni, B1Codes, VnniDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, I8, AvxVnni, I8Codes, VnniDot)
TFMOT_TERNARY_DEFINE_GEMM(avx2, I4, AvxVnni, I4Codes, VnniDot)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
