// One kernel of the integer product, as the table (kernels.inc) lists it.
#ifndef TFMOT_TERNARY_KERNELS_GEMM_H_
#define TFMOT_TERNARY_KERNELS_GEMM_H_

#include <cstddef>
#include <cstdint>

#include "custom_ops/kernels/cpu.h"
#include "custom_ops/kernels/format.h"

namespace tfmot_ternary {

// Rows of W that a kernel handles at once.
constexpr int kTileRows = 32;

// Bytes that a row of q has beyond k, all zero, rounded up from there to a multiple of 64: a kernel
// may read 64 bytes from any weight of a last block, padding included (8 * 4 - 1 at most).
constexpr int64_t kActivationPadding = 128;

inline int64_t ActivationStride(int64_t k) { return (k + 63) / 64 * 64 + kActivationPadding; }

// Rows of W.
struct GemmTile {
  Format format;
  const uint8_t* rows;  // the first one
  int64_t row_bytes;
  int row_count;  // 1 to kTileRows
  int64_t k;
  int64_t groups;      // 1, or ceil(k / group_size)
  int64_t group_size;  // 32, 64, 128 or 256 where groups may exceed 1; k or more for one group
  uint8_t* scratch;    // 64-byte aligned, GemmFunctions::scratch_bytes; one tile uses it at a time
  // With several groups, for kernels with prefetches_scales: the scales of the tile that comes
  // next, as many as its own; null where there is none.
  const float* next_scales = nullptr;
};

// Longest row for kernels with min_m > 1: their scratch, kTileRows * k bytes, should stay in the
// second-level cache (1 MiB).
constexpr int64_t kMaxTiledK = 32768;

// Rows of quantized x.
struct GemmInput {
  const int8_t* q;      // [m, stride], zero from k on; 64-byte aligned
  int64_t stride;       // ActivationStride(k)
  const int32_t* sums;  // [m, groups]: DigitOffset(format) * the sum of q over each group
  int64_t m;
  // Where the outputs of the rows will be written, y_stride floats apart; null if unknown. A kernel
  // that takes many rows at once brings those lines into the cache while it computes (measured at
  // m = 128: a tenth of the call).
  const float* y = nullptr;
  int64_t y_stride = 0;
};

// Prefetches the outputs of rows [begin, end), kTileRows of each, to be written.
inline void PrefetchOutputs(const GemmInput& input, int64_t begin, int64_t end) {
  if (input.y == nullptr) return;
  for (int64_t i = begin; i < end; ++i) {
    const float* y = input.y + i * input.y_stride;
    __builtin_prefetch(y, 1);
    __builtin_prefetch(y + kTileRows - 1, 1);
  }
}

struct GemmFunctions {
  // Rows of x that `multiply` likes to get at once, a bound for callers.
  int64_t block_m;
  // Whether `multiply` takes any range of groups; if not, it is called with all of them.
  bool group_ranges;
  size_t (*scratch_bytes)(int64_t k);
  // Prepares tile.scratch, once for any number of calls of `multiply`. May be null.
  void (*load)(const GemmTile& tile);
  // acc[i][g - group_begin][r] = sum of q[i] * w[r] over the weights of group g, for i < m,
  // group_begin <= g < group_end, r < row_count. acc: [m, group_end - group_begin, kTileRows],
  // 64-byte aligned; entries of rows from row_count on are unspecified.
  void (*multiply)(const GemmTile& tile, const GemmInput& input, int64_t group_begin,
                   int64_t group_end, int32_t* acc);
  // For several groups, all of them, in place of `multiply` and RowFunctions::add_groups: the same
  // float32 operations in the same order, where the sums of a group need not pass through memory.
  // sums[i][r] += float(sum of q[i] * w[r] over group g) * scales[g][r], for g ascending.
  // m <= block_m. scales: [groups, kTileRows], sums: [m, kTileRows], 64-byte aligned; entries of
  // rows from row_count on are unspecified. May be null.
  void (*multiply_scaled)(const GemmTile& tile, const GemmInput& input, const float* scales,
                          float* sums) = nullptr;
  // Whether any of them reads GemmInput::sums; if not, they may be left unwritten.
  bool reads_sums = true;
  // Whether multiply_scaled asks for GemmTile::next_scales while it computes: all at once would
  // wait for memory.
  bool prefetches_scales = false;
};

struct GemmKernel {
  const char* name;
  Format format;
  CpuFlags cpu;           // all of them needed
  int64_t min_m;          // rows of x from which the kernel is the choice
  int64_t min_grouped_m;  // the same where a row of W has several groups, or is short
  const GemmFunctions* functions;
};

// The lines of kernels.inc, best first for each format.
const GemmKernel* GemmKernels(int* count);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_GEMM_H_
