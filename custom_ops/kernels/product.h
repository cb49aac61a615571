// The product of prepared rows with a packed matrix, tile by tile on a thread pool: what
// fully_connected and conv2d share.
#ifndef TFMOT_TERNARY_KERNELS_PRODUCT_H_
#define TFMOT_TERNARY_KERNELS_PRODUCT_H_

#include <cstdint>

#include "custom_ops/kernels/epilogue.h"
#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/thread_pool.h"
#include "custom_ops/kernels/weights.h"
#include "custom_ops/kernels/workspace.h"

namespace tfmot_ternary {

// Most rows of x that are prepared at once: a slab. It bounds the workspace; unpacking a tile of
// weights costs about as much as 8 rows (AMX: 30), so that 256 keep its share near 3 % (12 %).
constexpr int64_t kSlabRows = 256;

// Shares of the work per thread: more than one, so that a thread that comes late is helped out.
constexpr int64_t kTasksPerThread = 4;

// Multiply-accumulates of int8 from which a product is worth a second thread: half a microsecond of
// work, the time of a hand-off.
constexpr int64_t kParallelProduct = int64_t{1} << 17;

inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows quantized to int8.
struct QuantizedRows {
  int8_t* q;       // [m, ActivationStride(k)]
  int32_t* sums;   // [m, groups]
  float* scale_x;  // [m], NaN for a row whose outputs are NaN
};

QuantizedRows TakeQuantizedRows(const PackedWeights& weights, int64_t m, Workspace* workspace);

// The rows from `first` on.
QuantizedRows RowsFrom(const QuantizedRows& rows, const PackedWeights& weights, int64_t first);

// Writes the zeros behind each of m rows.
void ClearPadding(const PackedWeights& weights, int64_t m, const QuantizedRows& rows);

// Whether MultiplyInt8 with m rows reads QuantizedRows::sums.
bool ReadsSums(const PackedWeights& weights, const Kernels& kernels, int64_t m);

// Scratch of the threads, for either product. Take it after everything that is shared.
struct ProductScratch {
  uint8_t* base;
  size_t bytes_per_thread;
};

ProductScratch TakeScratch(size_t bytes_per_thread, int num_threads, Workspace* workspace);
ProductScratch TakeInt8Scratch(const PackedWeights& weights, int num_threads, Workspace* workspace);

// y[m, n] from m rows of int8. The sums of `rows` are used up: they become what kernels read.
void MultiplyInt8(const PackedWeights& weights, const QuantizedRows& rows, int64_t m,
                  const Epilogue& epilogue, const Kernels& kernels, const ProductScratch& scratch,
                  ThreadPool* pool, float* y);

// The scale of a row of `count` values for int8, and the factor that quantizes it.
// Returns false when a value is not finite.
bool RowScale(const RowKernel& row, const float* x, int64_t count, float* scale_x, float* inverse);

// The same from the bits of the largest |x| (RowFunctions::largest_bits).
bool ScaleOfLargest(uint32_t bits, float* scale_x, float* inverse);

// fn on every task, on the pool or, where that is null, on the calling thread.
inline void RunTasks(ThreadPool* pool, int64_t tasks, ThreadPool::Task fn, void* arg) {
  if (pool != nullptr) {
    pool->ParallelFor(tasks, fn, arg);
  } else {
    for (int64_t task = 0; task < tasks; ++task) fn(arg, task, 0);
  }
}

inline int ThreadCount(const ThreadPool* pool) { return pool == nullptr ? 1 : pool->num_threads(); }

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_PRODUCT_H_
