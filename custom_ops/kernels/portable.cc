// The portable kernels: the specification that every other kernel equals bit for bit.
#include <cstring>

#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/row_body.h"

namespace tfmot_ternary {
namespace {

size_t ScratchBytes(int64_t k) { return static_cast<size_t>(k); }

void Multiply(const GemmTile& tile, const GemmInput& input, int64_t group_begin, int64_t group_end,
              int32_t* acc) {
  int8_t* w = reinterpret_cast<int8_t*>(tile.scratch);
  for (int r = 0; r < tile.row_count; ++r) {
    UnpackRow(tile.format, tile.rows + r * tile.row_bytes, tile.k, w);
    int32_t* out = acc + r;
    for (int64_t i = 0; i < input.m; ++i) {
      const int8_t* q = input.q + i * input.stride;
      for (int64_t g = group_begin; g < group_end; ++g, out += kTileRows) {
        const int64_t begin = g * tile.group_size;
        const int64_t end = std::min(tile.k, begin + tile.group_size);
        int32_t sum = 0;
        for (int64_t j = begin; j < end; ++j) sum += static_cast<int32_t>(w[j]) * q[j];
        *out = sum;
      }
    }
  }
}

}  // namespace

extern const GemmFunctions PortableGemm;
const GemmFunctions PortableGemm = {/*block_m=*/32, /*group_ranges=*/true, ScratchBytes,
                                    /*load=*/nullptr, Multiply};

void T2UnpackPortable(const uint8_t* row, int64_t k, int8_t* out);
void T5UnpackPortable(const uint8_t* row, int64_t k, int8_t* out);
void B1UnpackPortable(const uint8_t* row, int64_t k, int8_t* out);
void I8UnpackPortable(const uint8_t* row, int64_t k, int8_t* out);
void I4UnpackPortable(const uint8_t* row, int64_t k, int8_t* out);

void T2UnpackPortable(const uint8_t* row, int64_t k, int8_t* out) {
  UnpackRow(Format::kT2, row, k, out);
}
void T5UnpackPortable(const uint8_t* row, int64_t k, int8_t* out) {
  UnpackRow(Format::kT5, row, k, out);
}
void B1UnpackPortable(const uint8_t* row, int64_t k, int8_t* out) {
  UnpackRow(Format::kB1, row, k, out);
}
void I8UnpackPortable(const uint8_t* row, int64_t k, int8_t* out) {
  UnpackRow(Format::kI8, row, k, out);
}
void I4UnpackPortable(const uint8_t* row, int64_t k, int8_t* out) {
  UnpackRow(Format::kI4, row, k, out);
}

TFMOT_TERNARY_DEFINE_ROW_FUNCTIONS(PortableRow, , row_body::Transpose)

}  // namespace tfmot_ternary
