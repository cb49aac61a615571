// Attention over a cache of keys and values.
#ifndef TFMOT_TERNARY_KERNELS_ATTENTION_H_
#define TFMOT_TERNARY_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>

#include "custom_ops/kernels/attention_cache.h"
#include "custom_ops/kernels/cpu.h"
#include "custom_ops/kernels/row.h"
#include "custom_ops/kernels/thread_pool.h"

namespace tfmot_ternary {

// What is asked of a cache that holds the keys and values of the steps already.
struct AttentionQuery {
  const float* query;  // [steps, heads, head_dim]
  int64_t steps, heads;
  int64_t position;       // of the first step
  const uint8_t* mask;    // [steps, length], 0: hidden; null: step t sees positions up to its own
  float scale;            // of the scores
  float soft_cap = 0.0f;  // cap: cap * tanh(scaled score / cap); 0: none
};

// The rows of a query that share a head of keys and values: row r is step r / group, query head
// head * group + r % group, where group = heads / kv_heads.
inline int64_t GroupOf(const AttentionCache& cache, const AttentionQuery& query) {
  return query.heads / cache.shape().kv_heads;
}

// Positions that step t sees at most, mask aside.
inline int64_t VisibleEnd(const AttentionCache& cache, const AttentionQuery& query, int64_t step) {
  const int64_t end = query.position + (query.mask == nullptr ? step + 1 : query.steps);
  return end < cache.shape().length ? end : cache.shape().length;
}

// Rows of a query made ready for the kernels: scaled, or quantized.
struct PreparedRows {
  static constexpr int64_t kChunk = 256;   // dimensions in a row of `scaled`
  static constexpr int64_t kStride = 272;  // floats from row to row: no power of two

  // query * scale: dimension d of row r at [(d / kChunk * kAttentionRows + r) * kStride + d %
  // kChunk].
  float* scaled;
  // int8 cache: codes [rows, code_stride], query scale * score scale, -128 * (sum of codes).
  int8_t* codes;
  int64_t code_stride;
  float* scales;
  int32_t* corrections;
};

// Rows in a piece of work at most.
constexpr int64_t kAttentionRows = 48;

constexpr int64_t kMaxHeadDim = 8192;

// One piece of work: rows [row_begin, row_end) of one head against positions [key_begin, key_end).
struct AttentionPiece {
  const AttentionCache* cache;
  const AttentionQuery* query;
  PreparedRows rows;  // row row_begin first
  int64_t head, row_begin, row_end, key_begin, key_end;
  float* scratch;  // [kAttentionScratch]
  // Results, for row row_begin first: the largest score, the sum of exp(score - largest) and the
  // sum of exp(score - largest) * value, [rows, padded_dim]. Largest -infinity: nothing was
  // visible.
  float* largest;
  float* sums;
  float* out;
};

constexpr int64_t kAttentionScratch = 16 * PreparedRows::kStride;

struct AttentionFunctions {
  void (*attend)(const AttentionPiece& piece);
  void (*to_half)(const float* x, int64_t count, uint16_t* out);
};

struct AttentionKernel {
  const char* name;
  CpuFlags cpu;
  const AttentionFunctions* functions;
};

// The lines of attention.inc, best first.
const AttentionKernel* AttentionKernels(int* count);
// The first that fits.
const AttentionKernel* SelectAttention(CpuFlags flags);

// Keys and values [steps, kv_heads, head_dim] become the positions from `position` on; what lies
// past the end is dropped. 0 <= position. `workspace`: of AttentionWorkspaceBytes.
void StoreInCache(AttentionCache* cache, const float* keys, const float* values, int64_t steps,
                  int64_t position, const AttentionKernel& kernel, const RowKernel& row,
                  void* workspace, ThreadPool* pool);

size_t AttentionWorkspaceBytes(const CacheShape& shape, int64_t steps, int64_t heads,
                               int num_threads);

// out [steps, heads, head_dim]. A step that sees nothing gets zeros. 0 <= position < length. The
// numbers do not depend on the threads of the pool (null: the calling thread alone).
void Attend(const AttentionCache& cache, const AttentionQuery& query, const AttentionKernel& kernel,
            const RowKernel& row, void* workspace, ThreadPool* pool, float* out);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ATTENTION_H_
