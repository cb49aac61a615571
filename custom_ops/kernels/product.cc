#include "custom_ops/kernels/product.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "custom_ops/kernels/row.h"

namespace tfmot_ternary {
namespace {

// Groups whose sums lie in the accumulator at once, for kernels that take ranges: 24 rows of x by 8
// groups by 32 rows of W are 24 KiB, half of a first-level cache.
constexpr int64_t kGroupChunk = 8;

// Rows of W below this length are prefill's from few rows of x on: a short block costs the decode
// kernels as much as a full one (measured: 16 x 256 x 128 takes a third of the time, 16 x 256 x
// 1024 is even, 16 x 256 x 2048 is a tenth slower).
constexpr int64_t kShortRow = 1024;

// Least rows of x of a task, where the rows of x are split: a task unpacks its tiles for itself.
constexpr int64_t kTaskRows = 32;

// Groups whose integer sums lie in the accumulator.
int64_t GroupsAtOnce(const GemmFunctions& gemm, int64_t groups) {
  if (gemm.multiply_scaled != nullptr) return 1;
  return gemm.group_ranges ? std::min(groups, kGroupChunk) : groups;
}

bool IsUsable(const GemmKernel& kernel, int64_t k) { return kernel.min_m <= 1 || k <= kMaxTiledK; }

const GemmKernel& ChooseGemm(const Kernels& kernels, const PackedWeights& weights, int64_t m) {
  const GemmKernel& prefill = *kernels.prefill;
  const bool early = GroupCount(weights) > 1 || weights.k < kShortRow;
  const int64_t min_m = early ? prefill.min_grouped_m : prefill.min_m;
  return m >= min_m && IsUsable(prefill, weights.k) ? prefill : *kernels.decode;
}

// The pieces of one thread's scratch.
struct ThreadScratch {
  uint8_t* tile;
  int32_t* acc;   // [block_m, groups at once, kTileRows]
  float* scales;  // [groups, kTileRows], with kGroup
  float* sums;    // [block_m, kTileRows], with kGroup
};

// Room for any kernel of the format.
ThreadScratch TakeThreadScratch(const PackedWeights& weights, Workspace* workspace) {
  const int64_t groups = GroupCount(weights);
  int64_t tile_bytes = 0;
  int64_t acc_size = 0;
  int64_t block_m = 0;
  int count;
  const GemmKernel* table = GemmKernels(&count);
  for (int i = 0; i < count; ++i) {
    if (table[i].format != weights.format || !IsUsable(table[i], weights.k)) continue;
    const GemmFunctions& gemm = *table[i].functions;
    tile_bytes = std::max(tile_bytes, static_cast<int64_t>(gemm.scratch_bytes(weights.k)));
    acc_size = std::max(acc_size, gemm.block_m * GroupsAtOnce(gemm, groups) * kTileRows);
    block_m = std::max(block_m, gemm.block_m);
  }
  ThreadScratch scratch = {};
  scratch.tile = workspace->Take<uint8_t>(tile_bytes);
  scratch.acc = workspace->Take<int32_t>(acc_size);
  if (weights.layout == ScaleLayout::kGroup) {
    scratch.scales = workspace->Take<float>(groups * kTileRows);
    scratch.sums = workspace->Take<float>(block_m * kTileRows);
  }
  return scratch;
}

struct Int8Job {
  const PackedWeights& weights;
  const QuantizedRows& rows;
  int64_t m;
  const Epilogue& epilogue;
  const GemmFunctions& gemm;
  const RowFunctions& row;
  const ProductScratch& scratch;
  float* y;
  int64_t n_tasks;
  int64_t m_per_task;
};

// Asks for the scales of the tile at row n_begin, which are read in one go when its turn comes.
void PrefetchScales(const PackedWeights& weights, int64_t n_begin) {
  const int64_t groups = GroupCount(weights);
  const int64_t rows = std::min<int64_t>(kTileRows, weights.n - n_begin);
  const char* scales = reinterpret_cast<const char*>(weights.scales + n_begin * groups);
  const int64_t bytes = rows * groups * static_cast<int64_t>(sizeof(float));
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(scales + i);
}

// Rows [m_begin, m_end) of y, columns of one tile.
void MultiplyTile(const Int8Job& job, const GemmTile& tile, int64_t n_begin, int64_t m_begin,
                  int64_t m_end, const ThreadScratch& scratch) {
  const PackedWeights& weights = job.weights;
  const bool grouped = weights.layout == ScaleLayout::kGroup;
  const bool one_scale = weights.layout == ScaleLayout::kTensor;
  const float* bias = job.epilogue.bias == nullptr ? nullptr : job.epilogue.bias + n_begin;
  const int64_t stride = ActivationStride(weights.k);
  const int64_t groups_at_once = GroupsAtOnce(job.gemm, tile.groups);
  if (grouped) {
    job.row.transpose(weights.scales + n_begin * tile.groups, tile.row_count, tile.groups,
                      scratch.scales);
    if (!job.gemm.prefetches_scales && n_begin + kTileRows < weights.n) {
      PrefetchScales(weights, n_begin + kTileRows);
    }
  }
  for (int64_t i = m_begin; i < m_end; i += job.gemm.block_m) {
    const int64_t block_m = std::min(job.gemm.block_m, m_end - i);
    float* y = job.y + i * weights.n + n_begin;
    const int32_t* sums = job.rows.sums + i * tile.groups;
    const GemmInput input = {job.rows.q + i * stride, stride, sums, block_m, y, weights.n};
    if (!grouped) {
      const float* scales = weights.scales + (one_scale ? 0 : n_begin);
      job.gemm.multiply(tile, input, 0, 1, scratch.acc);
      for (int64_t j = 0; j < block_m; ++j) {
        job.row.finish(scratch.acc + j * kTileRows, tile.row_count, job.rows.scale_x[i + j], scales,
                       one_scale, bias, job.epilogue.activation, y + j * weights.n);
      }
      continue;
    }
    std::fill_n(scratch.sums, block_m * kTileRows, 0.0f);
    const bool scaled = job.gemm.multiply_scaled != nullptr;
    if (scaled) job.gemm.multiply_scaled(tile, input, scratch.scales, scratch.sums);
    for (int64_t g = 0; !scaled && g < tile.groups; g += groups_at_once) {
      const int64_t end = std::min(tile.groups, g + groups_at_once);
      job.gemm.multiply(tile, input, g, end, scratch.acc);
      for (int64_t j = 0; j < block_m; ++j) {
        job.row.add_groups(scratch.acc + j * (end - g) * kTileRows, scratch.scales + g * kTileRows,
                           end - g, scratch.sums + j * kTileRows);
      }
    }
    for (int64_t j = 0; j < block_m; ++j) {
      job.row.finish_groups(scratch.sums + j * kTileRows, tile.row_count, job.rows.scale_x[i + j],
                            bias, job.epilogue.activation, y + j * weights.n);
    }
  }
}

void RunInt8Task(void* arg, int64_t task, int worker) {
  const Int8Job& job = *static_cast<const Int8Job*>(arg);
  const PackedWeights& weights = job.weights;
  Workspace workspace(job.scratch.base + worker * job.scratch.bytes_per_thread);
  const ThreadScratch scratch = TakeThreadScratch(weights, &workspace);
  const int64_t tiles = DivideUp(weights.n, kTileRows);
  const int64_t n_task = task % job.n_tasks;
  const int64_t m_begin = task / job.n_tasks * job.m_per_task;
  const int64_t m_end = std::min(job.m, m_begin + job.m_per_task);
  GemmTile tile;
  tile.format = weights.format;
  tile.row_bytes = RowBytes(weights.format, weights.k);
  tile.k = weights.k;
  tile.groups = GroupCount(weights);
  tile.group_size = GroupSizeOf(weights);
  tile.scratch = scratch.tile;
  for (int64_t t = n_task * tiles / job.n_tasks; t < (n_task + 1) * tiles / job.n_tasks; ++t) {
    const int64_t n_begin = t * kTileRows;
    tile.rows = weights.data + n_begin * tile.row_bytes;
    tile.row_count = static_cast<int>(std::min<int64_t>(kTileRows, weights.n - n_begin));
    const bool grouped = weights.layout == ScaleLayout::kGroup;
    const bool last = n_begin + 2 * kTileRows > weights.n;
    tile.next_scales =
        grouped && !last ? weights.scales + (n_begin + kTileRows) * tile.groups : nullptr;
    if (job.gemm.load != nullptr) job.gemm.load(tile);
    MultiplyTile(job, tile, n_begin, m_begin, m_end, scratch);
  }
}

}  // namespace

QuantizedRows TakeQuantizedRows(const PackedWeights& weights, int64_t m, Workspace* workspace) {
  QuantizedRows rows;
  rows.q = workspace->Take<int8_t>(m * ActivationStride(weights.k));
  rows.sums = workspace->Take<int32_t>(m * GroupCount(weights));
  rows.scale_x = workspace->Take<float>(m);
  return rows;
}

QuantizedRows RowsFrom(const QuantizedRows& rows, const PackedWeights& weights, int64_t first) {
  return {rows.q + first * ActivationStride(weights.k), rows.sums + first * GroupCount(weights),
          rows.scale_x + first};
}

void ClearPadding(const PackedWeights& weights, int64_t m, const QuantizedRows& rows) {
  const int64_t stride = ActivationStride(weights.k);
  for (int64_t i = 0; i < m; ++i) {
    std::memset(rows.q + i * stride + weights.k, 0, static_cast<size_t>(stride - weights.k));
  }
}

bool ReadsSums(const PackedWeights& weights, const Kernels& kernels, int64_t m) {
  return ChooseGemm(kernels, weights, m).functions->reads_sums;
}

ProductScratch TakeScratch(size_t bytes_per_thread, int num_threads, Workspace* workspace) {
  ProductScratch scratch;
  scratch.bytes_per_thread = bytes_per_thread;
  scratch.base = workspace->Take<uint8_t>(static_cast<int64_t>(bytes_per_thread) * num_threads);
  return scratch;
}

ProductScratch TakeInt8Scratch(const PackedWeights& weights, int num_threads,
                               Workspace* workspace) {
  Workspace measure(nullptr);
  TakeThreadScratch(weights, &measure);
  return TakeScratch(measure.used(), num_threads, workspace);
}

void MultiplyInt8(const PackedWeights& weights, const QuantizedRows& rows, int64_t m,
                  const Epilogue& epilogue, const Kernels& kernels, const ProductScratch& scratch,
                  ThreadPool* pool, float* y) {
  const GemmFunctions& gemm = *ChooseGemm(kernels, weights, m).functions;
  const int32_t offset = DigitOffset(weights.format);
  if (offset != 1 && gemm.reads_sums) {
    for (int64_t i = 0; i < m * GroupCount(weights); ++i) rows.sums[i] *= offset;
  }
  if (m * weights.n * weights.k < kParallelProduct) pool = nullptr;
  const int64_t threads = ThreadCount(pool);
  const int64_t tiles = DivideUp(weights.n, kTileRows);
  const int64_t wanted = threads == 1 ? 1 : threads * kTasksPerThread;
  Int8Job job = {weights, rows, m, epilogue, gemm, *kernels.row->functions, scratch, y, 0, 0};
  job.n_tasks = std::min(tiles, wanted);
  // Where there are too few tiles for the threads, the rows of x are split as well.
  const int64_t m_tasks = job.n_tasks >= threads ? 1 : DivideUp(wanted, job.n_tasks);
  const int64_t unit = std::min(gemm.block_m, kTaskRows);
  job.m_per_task = DivideUp(DivideUp(m, m_tasks), unit) * unit;
  RunTasks(pool, job.n_tasks * DivideUp(m, job.m_per_task), RunInt8Task, &job);
}

bool RowScale(const RowKernel& row, const float* x, int64_t count, float* scale_x, float* inverse) {
  return ScaleOfLargest(row.functions->largest_bits(x, count), scale_x, inverse);
}

bool ScaleOfLargest(uint32_t bits, float* scale_x, float* inverse) {
  constexpr uint32_t kInfinityBits = 0x7f800000;
  if (bits >= kInfinityBits) {
    *scale_x = std::numeric_limits<float>::quiet_NaN();
    *inverse = 0.0f;
    return false;
  }
  float largest;
  std::memcpy(&largest, &bits, sizeof(largest));
  *scale_x = largest / 127.0f;
  // Below 1e-30 the factor would overflow: such a row counts as zero.
  *inverse = largest >= 1e-30f ? 127.0f / largest : 0.0f;
  return true;
}

}  // namespace tfmot_ternary
