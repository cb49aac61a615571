#include "custom_ops/kernels/conv2d.h"

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/product.h"
#include "custom_ops/kernels/row.h"

namespace tfmot_ternary {
namespace {

// Rows of y (patches) made at once, by the bytes of a patch: at most kSlabRows, fewer where that
// exceeds 1 MiB.
int64_t SlabRows(const Conv2DGeometry& geometry, int64_t patch_bytes) {
  const int64_t fit = std::max<int64_t>(1, (int64_t{1} << 20) / patch_bytes);
  return std::min({kSlabRows, fit, geometry.out_h * geometry.out_w});
}

int64_t ImageSize(const Conv2DGeometry& geometry) {
  return geometry.in_h * geometry.in_w * geometry.in_c;
}

struct Pieces {
  int64_t slab_rows;
  int8_t* image;       // kInt8: the quantized image
  QuantizedRows rows;  // kInt8: the patches
  float* patches;      // kFloat32
  ProductScratch scratch;
};

Pieces TakePieces(const PackedWeights& weights, const Conv2DGeometry& geometry,
                  Activations activations, int num_threads, Workspace* workspace) {
  Pieces pieces = {};
  if (activations == Activations::kInt8) {
    pieces.slab_rows = SlabRows(geometry, ActivationStride(weights.k));
    pieces.image = workspace->Take<int8_t>(ImageSize(geometry));
    pieces.rows = TakeQuantizedRows(weights, pieces.slab_rows, workspace);
    pieces.scratch = TakeInt8Scratch(weights, num_threads, workspace);
  } else {
    pieces.slab_rows = SlabRows(geometry, weights.k * static_cast<int64_t>(sizeof(float)));
    pieces.patches = workspace->Take<float>(pieces.slab_rows * weights.k);
    pieces.scratch = TakeFloat32Scratch(weights, num_threads, workspace);
  }
  return pieces;
}

// Copies the patch of output `index` (row-major over out_h, out_w), zero outside the image.
template <typename T>
void CopyPatch(const Conv2DGeometry& geometry, const T* image, int64_t index, T* patch) {
  const int64_t top = index / geometry.out_w * geometry.stride_h - geometry.pad_top;
  const int64_t left = index % geometry.out_w * geometry.stride_w - geometry.pad_left;
  const int64_t in_c = geometry.in_c;
  for (int64_t i = 0; i < geometry.kernel_h; ++i) {
    const int64_t h = top + i * geometry.dilation_h;
    const bool row_inside = h >= 0 && h < geometry.in_h;
    const T* row = image + h * geometry.in_w * in_c;
    const bool run =
        geometry.dilation_w == 1 && left >= 0 && left + geometry.kernel_w <= geometry.in_w;
    if (row_inside && run) {
      std::memcpy(patch, row + left * in_c, geometry.kernel_w * in_c * sizeof(T));
      patch += geometry.kernel_w * in_c;
      continue;
    }
    for (int64_t j = 0; j < geometry.kernel_w; ++j, patch += in_c) {
      const int64_t w = left + j * geometry.dilation_w;
      if (row_inside && w >= 0 && w < geometry.in_w) {
        std::memcpy(patch, row + w * in_c, in_c * sizeof(T));
      } else {
        std::memset(patch, 0, in_c * sizeof(T));
      }
    }
  }
}

struct PatchJob {
  const PackedWeights& weights;
  const Conv2DGeometry& geometry;
  const RowKernel& row;
  const Pieces& pieces;
  const float* x;  // the image, kFloat32
  float scale_x;
  int64_t begin;  // first output
  int64_t count;
  int64_t per_task;
};

void CopyInt8Patches(void* arg, int64_t task, int /*worker*/) {
  const PatchJob& job = *static_cast<const PatchJob*>(arg);
  const int64_t k = job.weights.k;
  const int64_t stride = ActivationStride(k);
  const int64_t group_size = job.weights.layout == ScaleLayout::kGroup ? job.weights.group_size : k;
  const int64_t end = std::min(job.count, (task + 1) * job.per_task);
  for (int64_t i = task * job.per_task; i < end; ++i) {
    int8_t* q = job.pieces.rows.q + i * stride;
    CopyPatch<int8_t>(job.geometry, job.pieces.image, job.begin + i, q);
    std::memset(q + k, 0, stride - k);
    job.row.functions->sum_groups(q, k, group_size,
                                  job.pieces.rows.sums + i * GroupCount(job.weights));
    job.pieces.rows.scale_x[i] = job.scale_x;
  }
}

void CopyFloat32Patches(void* arg, int64_t task, int /*worker*/) {
  const PatchJob& job = *static_cast<const PatchJob*>(arg);
  const int64_t end = std::min(job.count, (task + 1) * job.per_task);
  for (int64_t i = task * job.per_task; i < end; ++i) {
    CopyPatch<float>(job.geometry, job.x, job.begin + i, job.pieces.patches + i * job.weights.k);
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
  const Pieces pieces = TakePieces(weights, geometry, activations, ThreadCount(pool), &memory);
  const bool int8 = activations == Activations::kInt8;
  const int64_t image_size = ImageSize(geometry);
  const int64_t outputs = geometry.out_h * geometry.out_w;
  for (int64_t b = 0; b < geometry.batch; ++b, x += image_size) {
    PatchJob job = {weights, geometry, *kernels.row, pieces, x, 0.0f, 0, 0, 0};
    if (int8) {
      float inverse;
      if (RowScale(*kernels.row, x, image_size, &job.scale_x, &inverse)) {
        kernels.row->functions->quantize(x, image_size, inverse, pieces.image);
      } else {
        std::memset(pieces.image, 0, image_size);
      }
    }
    for (int64_t begin = 0; begin < outputs; begin += pieces.slab_rows) {
      job.begin = begin;
      job.count = std::min(pieces.slab_rows, outputs - begin);
      job.per_task = 16;
      const int64_t tasks = (job.count + job.per_task - 1) / job.per_task;
      RunTasks(pool, tasks, int8 ? CopyInt8Patches : CopyFloat32Patches, &job);
      if (int8) {
        MultiplyInt8(weights, pieces.rows, job.count, epilogue, kernels, pieces.scratch, pool, y);
      } else {
        MultiplyFloat32(weights, pieces.patches, job.count, epilogue, kernels, pieces.scratch, pool,
                        y);
      }
      y += job.count * weights.n;
    }
  }
}

}  // namespace tfmot_ternary
