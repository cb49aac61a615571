#include "custom_ops/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "custom_ops/kernels/product.h"
#include "custom_ops/kernels/workspace.h"

namespace tfmot_ternary {

#define TFMOT_TERNARY_ATTENTION(name, functions, flags) extern const AttentionFunctions functions;
#include "custom_ops/kernels/attention.inc"

namespace {

constexpr AttentionKernel kAttentionKernels[] = {
#define TFMOT_TERNARY_ATTENTION(name, functions, flags) {name, flags, &functions},
#include "custom_ops/kernels/attention.inc"
};

constexpr int64_t kLanes = AttentionCache::kLanes;

// Positions of a piece are a multiple of this: less is not worth the merging.
constexpr int64_t kSpanUnit = 256;
// Pieces below which the positions of a head are shared among tasks, too.
constexpr int64_t kEnoughTasks = 64;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the work is cut: from the shapes alone, so that the numbers do not depend on the threads.
struct Plan {
  int64_t rows;        // of one head of keys and values
  int64_t row_blocks;  // of at most kAttentionRows
  int64_t span;        // positions in a piece
  int64_t max_spans;   // pieces over the whole cache

  Plan(const CacheShape& shape, int64_t steps, int64_t heads) {
    rows = steps * (heads / shape.kv_heads);
    row_blocks = CeilDivide(rows, kAttentionRows);
    const int64_t units = CeilDivide(shape.length, kSpanUnit);
    const int64_t tasks = std::max<int64_t>(1, row_blocks * shape.kv_heads);
    const int64_t spans = std::min(units, std::max<int64_t>(1, kEnoughTasks / tasks));
    span = CeilDivide(units, spans) * kSpanUnit;
    max_spans = CeilDivide(shape.length, span);
  }
};

// The memory of one thread.
struct WorkerMemory {
  PreparedRows rows;
  float* scratch;
  float* largest;
  float* sums;
  float* out;
};

WorkerMemory TakeWorkerMemory(const CacheShape& shape, bool results, Workspace* workspace) {
  WorkerMemory memory = {};
  if (shape.type == CacheType::kInt8) {
    memory.rows.code_stride = CeilDivide(shape.head_dim, 4) * 4;
    memory.rows.codes = workspace->Take<int8_t>(kAttentionRows * memory.rows.code_stride);
    memory.rows.scales = workspace->Take<float>(kAttentionRows);
    memory.rows.corrections = workspace->Take<int32_t>(kAttentionRows);
  } else {
    memory.rows.scaled = workspace->Take<float>(CeilDivide(shape.head_dim, PreparedRows::kChunk) *
                                                kAttentionRows * PreparedRows::kStride);
  }
  memory.scratch = workspace->Take<float>(kAttentionScratch);
  if (results) {
    memory.largest = workspace->Take<float>(kAttentionRows);
    memory.sums = workspace->Take<float>(kAttentionRows);
    memory.out =
        workspace->Take<float>(kAttentionRows * CeilDivide(shape.head_dim, kLanes) * kLanes);
  }
  return memory;
}

struct Job {
  const AttentionCache& cache;
  const AttentionQuery& query;
  const AttentionKernel& kernel;
  const RowKernel& row;
  Plan plan;
  int64_t spans;  // of this call
  uint8_t* memory;
  size_t worker_bytes;
  // Where several spans are merged: [kv_heads, row_blocks, spans, rows of a block].
  float* largest;
  float* sums;
  float* out;
  float* result;
};

const float* QueryRow(const Job& job, int64_t head, int64_t row) {
  const int64_t group = GroupOf(job.cache, job.query);
  const int64_t query_head = row / group * job.query.heads + head * group + row % group;
  return job.query.query + query_head * job.cache.shape().head_dim;
}

void PrepareRows(const Job& job, const AttentionPiece& piece) {
  const int64_t dim = job.cache.shape().head_dim;
  const PreparedRows& rows = piece.rows;
  for (int64_t row = piece.row_begin; row < piece.row_end; ++row) {
    const float* x = QueryRow(job, piece.head, row);
    const int64_t r = row - piece.row_begin;
    if (job.cache.shape().type == CacheType::kInt8) {
      int8_t* codes = rows.codes + r * rows.code_stride;
      float scale, inverse;
      const bool finite = RowScale(job.row, x, dim, &scale, &inverse);
      if (finite) job.row.functions->quantize(x, dim, inverse, codes);
      const int64_t used = finite ? dim : 0;
      std::memset(codes + used, 0, static_cast<size_t>(rows.code_stride - used));
      int32_t sum = 0;
      for (int64_t d = 0; d < used; ++d) sum += codes[d];
      rows.scales[r] = scale * job.query.scale;
      rows.corrections[r] = -128 * sum;
      continue;
    }
    for (int64_t begin = 0; begin < dim; begin += PreparedRows::kChunk) {
      const int64_t count = std::min(PreparedRows::kChunk, dim - begin);
      float* scaled =
          rows.scaled + (begin / PreparedRows::kChunk * kAttentionRows + r) * PreparedRows::kStride;
      for (int64_t d = 0; d < count; ++d) scaled[d] = x[begin + d] * job.query.scale;
    }
  }
}

float* ResultRow(const Job& job, int64_t head, int64_t row) {
  return job.result + (QueryRow(job, head, row) - job.query.query);
}

// Rows of one span: divided by their sums.
void Finish(const Job& job, const AttentionPiece& piece) {
  const int64_t dim = job.cache.shape().head_dim;
  for (int64_t row = piece.row_begin; row < piece.row_end; ++row) {
    const int64_t r = row - piece.row_begin;
    const bool seen = piece.largest[r] != -std::numeric_limits<float>::infinity();
    const float inverse = seen ? 1.0f / piece.sums[r] : 0.0f;
    const float* from = piece.out + r * job.cache.padded_dim();
    float* to = ResultRow(job, piece.head, row);
    for (int64_t d = 0; d < dim; ++d) to[d] = seen ? from[d] * inverse : 0.0f;
  }
}

void RunPiece(void* arg, int64_t task, int worker) {
  const Job& job = *static_cast<const Job*>(arg);
  const int64_t span = task % job.spans;
  const int64_t block = task / job.spans;  // of [kv_heads, row_blocks]
  Workspace workspace(job.memory + static_cast<size_t>(worker) * job.worker_bytes);
  const WorkerMemory memory = TakeWorkerMemory(job.cache.shape(), true, &workspace);
  AttentionPiece piece = {};
  piece.cache = &job.cache;
  piece.query = &job.query;
  piece.rows = memory.rows;
  piece.scratch = memory.scratch;
  piece.head = block / job.plan.row_blocks;
  piece.row_begin = block % job.plan.row_blocks * kAttentionRows;
  piece.row_end = std::min(job.plan.rows, piece.row_begin + kAttentionRows);
  const int64_t last_step = (piece.row_end - 1) / GroupOf(job.cache, job.query);
  piece.key_begin = span * job.plan.span;
  piece.key_end =
      std::min(piece.key_begin + job.plan.span, VisibleEnd(job.cache, job.query, last_step));
  if (job.spans == 1) {
    piece.largest = memory.largest;
    piece.sums = memory.sums;
    piece.out = memory.out;
  } else {
    piece.largest = job.largest + task * kAttentionRows;
    piece.sums = job.sums + task * kAttentionRows;
    piece.out = job.out + task * kAttentionRows * job.cache.padded_dim();
  }
  PrepareRows(job, piece);
  job.kernel.functions->attend(piece);
  if (job.spans == 1) Finish(job, piece);
}

// The spans of one block of rows become its result, in ascending order.
void Merge(void* arg, int64_t block, int /*worker*/) {
  const Job& job = *static_cast<const Job*>(arg);
  const int64_t dim = job.cache.shape().head_dim;
  const int64_t padded = job.cache.padded_dim();
  const int64_t head = block / job.plan.row_blocks;
  const int64_t row_begin = block % job.plan.row_blocks * kAttentionRows;
  const int64_t row_end = std::min(job.plan.rows, row_begin + kAttentionRows);
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t first = block * job.spans * kAttentionRows + row - row_begin;
    float largest = kNothing;
    for (int64_t span = 0; span < job.spans; ++span) {
      const float value = job.largest[first + span * kAttentionRows];
      if (!(value <= largest)) largest = value;
    }
    float* to = ResultRow(job, head, row);
    std::fill_n(to, dim, 0.0f);
    if (largest == kNothing) continue;
    float sum = 0.0f;
    for (int64_t span = 0; span < job.spans; ++span) {
      const int64_t index = first + span * kAttentionRows;
      if (job.largest[index] == kNothing) continue;
      const float weight = std::exp(job.largest[index] - largest);
      const float* from = job.out + index * padded;
      sum += weight * job.sums[index];
      for (int64_t d = 0; d < dim; ++d) to[d] += weight * from[d];
    }
    const float inverse = 1.0f / sum;
    for (int64_t d = 0; d < dim; ++d) to[d] *= inverse;
  }
}

size_t WorkerBytes(const CacheShape& shape) {
  Workspace workspace(nullptr);
  TakeWorkerMemory(shape, true, &workspace);
  return workspace.used();
}

void TakeSpans(const CacheShape& shape, const Plan& plan, Workspace* workspace, Job* job) {
  const int64_t rows =
      plan.max_spans == 1 ? 0 : shape.kv_heads * plan.row_blocks * plan.max_spans * kAttentionRows;
  float* largest = workspace->Take<float>(rows);
  float* sums = workspace->Take<float>(rows);
  float* out = workspace->Take<float>(rows * CeilDivide(shape.head_dim, kLanes) * kLanes);
  if (job == nullptr) return;
  job->largest = largest;
  job->sums = sums;
  job->out = out;
}

}  // namespace

const AttentionKernel* AttentionKernels(int* count) {
  *count = sizeof(kAttentionKernels) / sizeof(kAttentionKernels[0]);
  return kAttentionKernels;
}

const AttentionKernel* SelectAttention(CpuFlags flags) {
  for (const AttentionKernel& kernel : kAttentionKernels) {
    if ((flags & kernel.cpu) == kernel.cpu) return &kernel;
  }
  return nullptr;
}

size_t AttentionWorkspaceBytes(const CacheShape& shape, int64_t steps, int64_t heads,
                               int num_threads) {
  Workspace workspace(nullptr);
  TakeSpans(shape, Plan(shape, steps, heads), &workspace, nullptr);
  return workspace.used() + static_cast<size_t>(num_threads) * WorkerBytes(shape);
}

void Attend(const AttentionCache& cache, const AttentionQuery& query, const AttentionKernel& kernel,
            const RowKernel& row, void* workspace, ThreadPool* pool, float* out) {
  const Plan plan(cache.shape(), query.steps, query.heads);
  if (plan.rows == 0) return;
  const int64_t end = VisibleEnd(cache, query, query.steps - 1);
  const int64_t spans = CeilDivide(end, plan.span);
  Job job = {cache,   query,   kernel,  row, plan, spans, nullptr, WorkerBytes(cache.shape()),
             nullptr, nullptr, nullptr, out};
  Workspace memory(workspace);
  TakeSpans(cache.shape(), plan, &memory, &job);
  job.memory = memory.Take<uint8_t>(0);
  const int64_t blocks = cache.shape().kv_heads * plan.row_blocks;
  RunTasks(pool, blocks * spans, RunPiece, &job);
  // Adding up is a small part of the work: not worth waking the threads again.
  for (int64_t block = 0; spans > 1 && block < blocks; ++block) Merge(&job, block, 0);
}

}  // namespace tfmot_ternary
