// AVX2: single rows.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/avx2.h"
#include "custom_ops/kernels/row_body.h"

namespace tfmot_ternary {
namespace avx2 {
namespace {

template <class Codec>
TFMOT_TERNARY_AVX2 void UnpackCodes(const uint8_t* row, int64_t k, int8_t* out) {
  alignas(64) uint8_t codes[kDecodedBytes];
  constexpr int kOffset = DigitOffset(Codec::kFormat);
  const __m256i offset = Set8(kOffset);
  for (int64_t begin = 0; begin < k; begin += kPieceWeights<Codec>) {
    const int64_t count = std::min(kPieceWeights<Codec>, k - begin);
    DecodePiece<Codec>(row + begin / Codec::kFields, count, codes);
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) {
      Store(out + begin + i, _mm256_sub_epi8(Load(codes + i), offset));
    }
    for (; i < count; ++i) out[begin + i] = static_cast<int8_t>(codes[i] - kOffset);
  }
}

}  // namespace
}  // namespace avx2

void T2UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out);
void T5UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out);
void B1UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out);
void I8UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out);
void I4UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out);

void T2UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out) {
  avx2::UnpackCodes<avx2::T2Codec>(row, k, out);
}
void T5UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out) {
  avx2::UnpackCodes<avx2::T5Codec>(row, k, out);
}
void B1UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out) {
  avx2::UnpackCodes<avx2::B1Codec>(row, k, out);
}
void I8UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out) {
  avx2::UnpackCodes<avx2::I8Codec>(row, k, out);
}
void I4UnpackAvx2(const uint8_t* row, int64_t k, int8_t* out) {
  avx2::UnpackCodes<avx2::I4Codec>(row, k, out);
}

TFMOT_TERNARY_DEFINE_ROW_FUNCTIONS(Avx2Row, __attribute__((target("avx2"))), row_body::Transpose)

}  // namespace tfmot_ternary

#endif  // defined(__x86_64__)
