#include "custom_ops/kernels/conv2d.h"

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/float32_product.h"
#include "custom_ops/kernels/patches.h"
#include "custom_ops/kernels/product.h"

namespace tfmot_ternary {
namespace {

// Bytes of the patches that are made at once (a slab, of at most kSlabRows): they and their outputs
// should stay in the second-level cache.
constexpr int64_t kSlabBytes = int64_t{1} << 19;

// Patches that one task makes where threads share a slab.
constexpr int64_t kPatchesPerTask = 16;

// Outputs for each thread from which it has a slab of its own and unpacks all weights (measured on
// 2 threads: 3 x 3, 7 x 7 x 512 takes 62 us instead of 76, 14 x 14 x 256 61 instead of 89).
constexpr int64_t kOwnSlabRows = 16;

int64_t Outputs(const Conv2DGeometry& geometry) { return geometry.out_h * geometry.out_w; }

// Each thread makes and multiplies slabs of its own where there are enough outputs, because patches
// come slowly from another core's cache. Otherwise the threads share a slab, so that each unpacks
// only a part of the weights.
bool HasSlabPerThread(const Conv2DGeometry& geometry, int num_threads) {
  return num_threads > 1 && Outputs(geometry) >= num_threads * kOwnSlabRows;
}

// Slabs of nearly equal size, as many for each thread, and of whole blocks of 32 rows if possible:
// kernels for many rows take about as long for a part of a block.
int64_t SlabRows(const Conv2DGeometry& geometry, int64_t patch_bytes, int num_threads) {
  const int64_t outputs = Outputs(geometry);
  const int64_t threads = HasSlabPerThread(geometry, num_threads) ? num_threads : 1;
  const int64_t most = std::max<int64_t>(1, std::min(kSlabRows, kSlabBytes / patch_bytes));
  const int64_t slabs = DivideUp(DivideUp(outputs, threads), most) * threads;
  return std::min({most, outputs, DivideUp(DivideUp(outputs, slabs), 32) * 32});
}

struct Pieces {
  int64_t slab_rows;
  QuantizedImage image;  // kInt8
  QuantizedRows rows;    // kInt8: a slab of patches for each thread that has its own
  float* patches;        // kFloat32: the same
  ProductScratch scratch;
};

Pieces TakePieces(const PackedWeights& weights, const Conv2DGeometry& geometry,
                  Activations activations, int num_threads, Workspace* workspace) {
  const int64_t slabs = HasSlabPerThread(geometry, num_threads) ? num_threads : 1;
  Pieces pieces = {};
  if (activations == Activations::kInt8) {
    pieces.slab_rows = SlabRows(geometry, ActivationStride(weights.k), num_threads);
    pieces.image = TakeQuantizedImage(weights, geometry, workspace);
    pieces.rows = TakeQuantizedRows(weights, slabs * pieces.slab_rows, workspace);
    pieces.scratch = TakeInt8Scratch(weights, num_threads, workspace);
  } else {
    const int64_t patch_bytes = weights.k * static_cast<int64_t>(sizeof(float));
    pieces.slab_rows = SlabRows(geometry, patch_bytes, num_threads);
    pieces.patches = workspace->Take<float>(slabs * pieces.slab_rows * weights.k);
    pieces.scratch = TakeFloat32Scratch(weights, num_threads, workspace);
  }
  return pieces;
}

struct ImageJob {
  const PackedWeights& weights;
  const Conv2DGeometry& geometry;
  const Epilogue& epilogue;
  const Kernels& kernels;
  const Pieces& pieces;
  Activations activations;
  ThreadPool* pool;  // the threads that share a slab
  const float* x;    // the image
  float inverse;
  float* y;
};

struct SlabJob {
  const ImageJob& image;
  int64_t begin;  // first output
  int64_t count;
  int64_t per_task;
  QuantizedRows rows;
  float* patches;
};

void MakePatches(void* arg, int64_t task, int /*worker*/) {
  const SlabJob& slab = *static_cast<const SlabJob*>(arg);
  const ImageJob& job = slab.image;
  const int64_t first = task * slab.per_task;
  const int64_t count = std::min(slab.per_task, slab.count - first);
  if (job.activations == Activations::kInt8) {
    const QuantizedRows rows = RowsFrom(slab.rows, job.weights, first);
    WriteInt8Patches(job.weights, job.geometry, job.x, job.inverse, job.pieces.image,
                     *job.kernels.row, slab.begin + first, count, rows);
  } else {
    WriteFloat32Patches(job.geometry, job.x, *job.kernels.row, slab.begin + first, count,
                        slab.patches + first * job.weights.k);
  }
}

void RunSlab(void* arg, int64_t task, int worker) {
  const ImageJob& job = *static_cast<const ImageJob*>(arg);
  const int64_t begin = task * job.pieces.slab_rows;
  const int64_t count = std::min(job.pieces.slab_rows, Outputs(job.geometry) - begin);
  const int64_t first_row = worker * job.pieces.slab_rows;
  const int64_t per_task = job.pool == nullptr ? count : kPatchesPerTask;
  SlabJob slab = {job, begin, count, per_task, {}, nullptr};
  if (job.activations == Activations::kInt8) {
    slab.rows = RowsFrom(job.pieces.rows, job.weights, first_row);
  } else {
    slab.patches = job.pieces.patches + first_row * job.weights.k;
  }
  RunTasks(job.pool, DivideUp(count, per_task), MakePatches, &slab);
  // A worker with a slab of its own is the only thread of its product.
  ProductScratch scratch = job.pieces.scratch;
  scratch.base += worker * scratch.bytes_per_thread;
  float* y = job.y + begin * job.weights.n;
  if (job.activations == Activations::kInt8) {
    MultiplyInt8(job.weights, slab.rows, count, job.epilogue, job.kernels, scratch, job.pool, y);
  } else {
    MultiplyFloat32(job.weights, slab.patches, count, job.epilogue, job.kernels, scratch, job.pool,
                    y);
  }
}

int64_t PaddingBefore(Padding padding, int64_t in, int64_t kernel_extent, int64_t stride,
                      int64_t out) {
  if (padding == Padding::kValid) return 0;
  return std::max<int64_t>(0, (out - 1) * stride + kernel_extent - in) / 2;
}

int64_t OutputSize(Padding padding, int64_t in, int64_t kernel_extent, int64_t stride) {
  if (padding == Padding::kSame) return (in + stride - 1) / stride;
  return in < kernel_extent ? 0 : (in - kernel_extent) / stride + 1;
}

}  // namespace

bool ParsePadding(const char* token, Padding* out) {
  if (token == nullptr) return false;
  if (std::strcmp(token, "SAME") == 0) {
    *out = Padding::kSame;
  } else if (std::strcmp(token, "VALID") == 0) {
    *out = Padding::kValid;
  } else {
    return false;
  }
  return true;
}

bool SetOutput(Padding padding, Conv2DGeometry* geometry) {
  Conv2DGeometry& g = *geometry;
  const int64_t smallest = std::min({g.batch, g.in_h, g.in_w, g.in_c, g.kernel_h, g.kernel_w,
                                     g.stride_h, g.stride_w, g.dilation_h, g.dilation_w});
  if (smallest < 1) return false;
  const int64_t extent_h = (g.kernel_h - 1) * g.dilation_h + 1;
  const int64_t extent_w = (g.kernel_w - 1) * g.dilation_w + 1;
  g.out_h = OutputSize(padding, g.in_h, extent_h, g.stride_h);
  g.out_w = OutputSize(padding, g.in_w, extent_w, g.stride_w);
  g.pad_top = PaddingBefore(padding, g.in_h, extent_h, g.stride_h, g.out_h);
  g.pad_left = PaddingBefore(padding, g.in_w, extent_w, g.stride_w, g.out_w);
  return g.out_h > 0 && g.out_w > 0;
}

size_t Conv2DWorkspaceBytes(const PackedWeights& weights, const Conv2DGeometry& geometry,
                            Activations activations, int num_threads) {
  Workspace measure(nullptr);
  TakePieces(weights, geometry, activations, num_threads, &measure);
  return measure.used();
}

void Conv2D(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
            const Epilogue& epilogue, Activations activations, const Kernels& kernels,
            void* workspace, ThreadPool* pool, float* y) {
  Workspace memory(workspace);
  Pieces pieces = TakePieces(weights, geometry, activations, ThreadCount(pool), &memory);
  const bool int8 = activations == Activations::kInt8;
  const bool own_slabs = HasSlabPerThread(geometry, ThreadCount(pool));
  const int64_t rows = pieces.slab_rows * (own_slabs ? ThreadCount(pool) : 1);
  const int64_t slabs = DivideUp(Outputs(geometry), pieces.slab_rows);
  const int64_t image_size = geometry.in_h * geometry.in_w * geometry.in_c;
  // The last slab may be shorter, and another kernel's.
  const int64_t last_rows = Outputs(geometry) - (slabs - 1) * pieces.slab_rows;
  if (!ReadsSums(weights, kernels, pieces.slab_rows) && !ReadsSums(weights, kernels, last_rows)) {
    pieces.image.source = PatchSums::kNone;
  }
  const int64_t y_size = Outputs(geometry) * weights.n;
  if (int8) ClearPadding(weights, rows, pieces.rows);
  for (int64_t b = 0; b < geometry.batch; ++b, x += image_size, y += y_size) {
    ImageJob job = {
        weights, geometry, epilogue, kernels, pieces, activations, own_slabs ? nullptr : pool,
        x,       0.0f,     y};
    if (int8) {
      float scale_x;
      if (!ReadImage(weights, geometry, x, *kernels.row, pool, pieces.image, &scale_x,
                     &job.inverse)) {
        std::fill_n(y, y_size, scale_x);  // NaN
        continue;
      }
      std::fill_n(pieces.rows.scale_x, rows, scale_x);
    }
    RunTasks(own_slabs ? pool : nullptr, slabs, RunSlab, &job);
  }
}

}  // namespace tfmot_ternary
