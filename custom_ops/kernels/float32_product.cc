#include "custom_ops/kernels/float32_product.h"

#include <algorithm>

#include "custom_ops/kernels/float_kernel.h"
#include "custom_ops/kernels/row.h"

namespace tfmot_ternary {
namespace {

// Rows of x that meet a tile of W at once: their sums are 8 KiB.
constexpr int64_t kBlockM = 64;

// Rows of W unpacked at once where the CPU has no kernel for packed ones.
constexpr int kUnpackedRows = 8;

// Multiply-accumulates from which a product is worth a second thread.
constexpr int64_t kParallelFloat32Product = int64_t{1} << 15;

struct Float32Job {
  const PackedWeights& weights;
  const float* x;
  int64_t m;
  const Epilogue& epilogue;
  const Kernels& kernels;
  const ProductScratch& scratch;
  float* y;
  int64_t tiles;
  int64_t m_per_task;
};

struct ThreadScratch {
  float* sums;    // [kBlockM, kTileRows]
  int8_t* codes;  // [kUnpackedRows, k]
};

ThreadScratch TakeThreadScratch(const PackedWeights& weights, Workspace* workspace) {
  ThreadScratch scratch;
  scratch.sums = workspace->Take<float>(kBlockM * kTileRows);
  scratch.codes = workspace->Take<int8_t>(kUnpackedRows * weights.k);
  return scratch;
}

// FloatFunctions::multiply by way of int8.
void MultiplyUnpacked(const Kernels& kernels, const GemmTile& tile, const float* scales,
                      int64_t scale_stride, const float* x, int64_t m, int8_t* codes, float* sums) {
  for (int first = 0; first < tile.row_count; first += kUnpackedRows) {
    const int count = std::min(kUnpackedRows, tile.row_count - first);
    for (int r = 0; r < count; ++r) {
      kernels.unpack->unpack(tile.rows + (first + r) * tile.row_bytes, tile.k, codes + r * tile.k);
    }
    for (int64_t i = 0; i < m; ++i) {
      for (int r = 0; r < count; ++r) {
        float sum = 0.0f;
        for (int64_t g = 0; g < tile.groups; ++g) {
          const int64_t begin = g * tile.group_size;
          const int64_t size = std::min(tile.group_size, tile.k - begin);
          const float dot =
              kernels.row->functions->dot(x + i * tile.k + begin, codes + r * tile.k + begin, size);
          sum += scales[(first + r) * scale_stride + g] * dot;
        }
        sums[i * kTileRows + first + r] = sum;
      }
    }
  }
}

void RunFloat32Task(void* arg, int64_t task, int worker) {
  const Float32Job& job = *static_cast<const Float32Job*>(arg);
  const PackedWeights& weights = job.weights;
  Workspace workspace(job.scratch.base + worker * job.scratch.bytes_per_thread);
  const ThreadScratch scratch = TakeThreadScratch(weights, &workspace);
  const int64_t n_begin = task % job.tiles * kTileRows;
  const int64_t m_begin = task / job.tiles * job.m_per_task;
  const int64_t m_end = std::min(job.m, m_begin + job.m_per_task);
  GemmTile tile = {};
  tile.format = weights.format;
  tile.row_bytes = RowBytes(weights.format, weights.k);
  tile.rows = weights.data + n_begin * tile.row_bytes;
  tile.row_count = static_cast<int>(std::min<int64_t>(kTileRows, weights.n - n_begin));
  tile.k = weights.k;
  tile.groups = GroupCount(weights);
  tile.group_size = GroupSizeOf(weights);
  const int64_t scale_stride = weights.layout == ScaleLayout::kTensor ? 0 : tile.groups;
  const float* scales = weights.scales + n_begin * scale_stride;
  const float* bias = job.epilogue.bias == nullptr ? nullptr : job.epilogue.bias + n_begin;
  for (int64_t i = m_begin; i < m_end; i += kBlockM) {
    const int64_t m = std::min(kBlockM, m_end - i);
    const float* x = job.x + i * weights.k;
    if (job.kernels.floats != nullptr) {
      job.kernels.floats->functions->multiply(tile, scales, scale_stride, x, m, scratch.sums);
    } else {
      MultiplyUnpacked(job.kernels, tile, scales, scale_stride, x, m, scratch.codes, scratch.sums);
    }
    for (int64_t j = 0; j < m; ++j) {
      job.kernels.row->functions->finish_groups(scratch.sums + j * kTileRows, tile.row_count, 1.0f,
                                                bias, job.epilogue.activation,
                                                job.y + (i + j) * weights.n + n_begin);
    }
  }
}

}  // namespace

ProductScratch TakeFloat32Scratch(const PackedWeights& weights, int num_threads,
                                  Workspace* workspace) {
  Workspace measure(nullptr);
  TakeThreadScratch(weights, &measure);
  return TakeScratch(measure.used(), num_threads, workspace);
}

void MultiplyFloat32(const PackedWeights& weights, const float* x, int64_t m,
                     const Epilogue& epilogue, const Kernels& kernels,
                     const ProductScratch& scratch, ThreadPool* pool, float* y) {
  if (m * weights.n * weights.k < kParallelFloat32Product) pool = nullptr;
  const int64_t tiles = DivideUp(weights.n, kTileRows);
  Float32Job job = {weights, x, m, epilogue, kernels, scratch, y, tiles, m};
  const int64_t wanted = ThreadCount(pool) * kTasksPerThread;
  if (pool != nullptr && tiles < wanted) {
    // Too few tiles: the rows of x are split as well, by eight.
    job.m_per_task = DivideUp(DivideUp(m, DivideUp(wanted, tiles)), 8) * 8;
  }
  RunTasks(pool, tiles * DivideUp(m, job.m_per_task), RunFloat32Task, &job);
}

}  // namespace tfmot_ternary
