// Runs one kernel of the table on one tile of 32 rows of W, for arm64_instructions.py, which counts
// what it executes:
//
//     arm64_kernel NAME M K GROUP_SIZE REPEATS
//
// NAME as in kernels.inc; GROUP_SIZE 0 means one group. Status 2: no such kernel.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

int Run(const char* name, int64_t m, int64_t k, int64_t group_size, int repeats) {
  int count;
  const GemmKernel* table = GemmKernels(&count);
  const GemmKernel* kernel = std::find_if(table, table + count, [name](const GemmKernel& entry) {
    return std::strcmp(entry.name, name) == 0;
  });
  if (kernel == table + count) {
    std::fprintf(stderr, "expected the name of a kernel, got %s\n", name);
    return 2;
  }
  const GemmFunctions& gemm = *kernel->functions;
  const int64_t groups = group_size == 0 ? 1 : (k + group_size - 1) / group_size;
  const int64_t row_bytes = RowBytes(kernel->format, k);
  const int64_t stride = ActivationStride(k);
  const Aligned<uint8_t> packed(kTileRows * row_bytes);
  const Aligned<uint8_t> scratch(static_cast<int64_t>(gemm.scratch_bytes(k)));
  const Aligned<int8_t> q(m * stride);
  const Aligned<int32_t> sums(m * groups), acc(gemm.block_m * groups * kTileRows);
  // What a kernel executes does not depend on the values.
  std::memset(packed.data(), 0, static_cast<size_t>(packed.size()));
  std::memset(q.data(), 0, static_cast<size_t>(q.size()));
  std::memset(sums.data(), 0, static_cast<size_t>(sums.size()) * sizeof(int32_t));
  const GemmTile tile = {kernel->format,
                         packed.data(),
                         row_bytes,
                         kTileRows,
                         k,
                         groups,
                         group_size == 0 ? k : group_size,
                         scratch.data()};
  for (int repeat = 0; repeat < repeats; ++repeat) {
    if (gemm.load != nullptr) gemm.load(tile);
    for (int64_t i = 0; i < m; i += gemm.block_m) {
      const GemmInput input = {q.data() + i * stride, stride, sums.data() + i * groups,
                               std::min(gemm.block_m, m - i)};
      gemm.multiply(tile, input, 0, groups, acc.data());
    }
  }
  return 0;
}

}  // namespace
}  // namespace tfmot_ternary

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: arm64_kernel NAME M K GROUP_SIZE REPEATS\n");
    return 2;
  }
  return tfmot_ternary::Run(argv[1], std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4]),
                            std::atoi(argv[5]));
}
