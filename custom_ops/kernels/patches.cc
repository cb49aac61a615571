#include "custom_ops/kernels/patches.h"

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/row.h"

namespace tfmot_ternary {
namespace {

// Values of an image that are worth a task: about a microsecond of work.
constexpr int64_t kValuesPerTask = 16384;

// Values that one sum of the image of sums covers.
int64_t SumSize(const PackedWeights& weights, const Conv2DGeometry& geometry) {
  return weights.layout == ScaleLayout::kGroup ? weights.group_size : geometry.in_c;
}

PatchSums SourceOfSums(const PackedWeights& weights, const Conv2DGeometry& geometry) {
  if (IsPointwise(geometry)) return PatchSums::kPatch;
  if (weights.layout != ScaleLayout::kGroup) return PatchSums::kWindow;
  return geometry.in_c % weights.group_size == 0 ? PatchSums::kPixel : PatchSums::kPatch;
}

bool HasImageOfSums(PatchSums source) {
  return source == PatchSums::kWindow || source == PatchSums::kPixel;
}

// Copies the patch whose upper left corner is (top, left) from an image of `channels` values a
// pixel, zero outside of it.
template <typename T>
void CopyPatch(const Conv2DGeometry& geometry, int64_t channels, const T* image, int64_t top,
               int64_t left, T* patch) {
  const size_t bytes = static_cast<size_t>(channels) * sizeof(T);
  for (int64_t i = 0; i < geometry.kernel_h; ++i) {
    const int64_t h = top + i * geometry.dilation_h;
    for (int64_t j = 0; j < geometry.kernel_w; ++j, patch += channels) {
      const int64_t w = left + j * geometry.dilation_w;
      if (h >= 0 && h < geometry.in_h && w >= 0 && w < geometry.in_w) {
        std::memcpy(patch, image + (h * geometry.in_w + w) * channels, bytes);
      } else {
        std::memset(patch, 0, bytes);
      }
    }
  }
}

// Copies the patches of the outputs [begin, end) of one row of outputs, patch_stride values apart.
template <typename T>
void CopyPatchesOfRow(const Conv2DGeometry& geometry, const RowFunctions& row, int64_t channels,
                      const T* image, int64_t out_row, int64_t begin, int64_t end,
                      int64_t patch_stride, T* patches) {
  const int64_t size = sizeof(T);
  const int64_t top = out_row * geometry.stride_h - geometry.pad_top;
  const int64_t bottom = top + (geometry.kernel_h - 1) * geometry.dilation_h;
  // Outputs [inside, inside_end) see only pixels of the image, in runs of kernel_w.
  int64_t inside = end;
  int64_t inside_end = end;
  const int64_t last_left = geometry.in_w - geometry.kernel_w;
  if (geometry.dilation_w == 1 && top >= 0 && bottom < geometry.in_h && last_left >= 0) {
    inside = std::max(begin, DivideUp(geometry.pad_left, geometry.stride_w));
    inside_end = std::min(end, (last_left + geometry.pad_left) / geometry.stride_w + 1);
  }
  for (int64_t w = begin; w < end; ++w) {
    T* patch = patches + (w - begin) * patch_stride;
    const int64_t left = w * geometry.stride_w - geometry.pad_left;
    if (w < inside || w >= inside_end) {
      CopyPatch<T>(geometry, channels, image, top, left, patch);
      continue;
    }
    Patches windows;
    windows.first =
        reinterpret_cast<const uint8_t*>(image + (top * geometry.in_w + left) * channels);
    windows.step = geometry.stride_w * channels * size;
    windows.runs = geometry.kernel_h;
    windows.run_step = geometry.dilation_h * geometry.in_w * channels * size;
    windows.run_bytes = geometry.kernel_w * channels * size;
    row.copy_patches(windows, inside_end - w, patch_stride * size,
                     reinterpret_cast<uint8_t*>(patch));
    w = inside_end - 1;
  }
}

// The same for outputs [begin, begin + count), row-major over out_h, out_w.
template <typename T>
void CopyPatches(const Conv2DGeometry& geometry, const RowFunctions& row, int64_t channels,
                 const T* image, int64_t begin, int64_t count, int64_t patch_stride, T* patches) {
  const int64_t end = begin + count;
  while (begin < end) {
    const int64_t out_row = begin / geometry.out_w;
    const int64_t w = begin % geometry.out_w;
    const int64_t w_end = std::min(geometry.out_w, w + end - begin);
    CopyPatchesOfRow<T>(geometry, row, channels, image, out_row, w, w_end, patch_stride, patches);
    patches += (w_end - w) * patch_stride;
    begin += w_end - w;
  }
}

// Quantizes the pixels that a pointwise convolution sees.
void QuantizePixels(const Conv2DGeometry& geometry, const RowFunctions& row, const float* x,
                    float inverse, int64_t begin, int64_t count, int64_t q_stride, int8_t* q) {
  const int64_t channels = geometry.in_c;
  int64_t h = begin / geometry.out_w;
  int64_t w = begin % geometry.out_w;
  for (int64_t i = 0; i < count; ++i, q += q_stride) {
    const int64_t pixel = h * geometry.stride_h * geometry.in_w + w * geometry.stride_w;
    row.quantize(x + pixel * channels, channels, inverse, q);
    if (++w == geometry.out_w) ++h, w = 0;
  }
}

struct ImageJob {
  const PackedWeights& weights;
  const Conv2DGeometry& geometry;
  const RowFunctions& row;
  const float* x;
  const QuantizedImage& image;
  float inverse;
  void (*run_row)(const ImageJob& job, int64_t row);
  int64_t rows;
  int64_t rows_per_task;
};

void FindLargest(const ImageJob& job, int64_t h) {
  const int64_t size = job.geometry.in_w * job.geometry.in_c;
  job.image.largest[h] = job.row.largest_bits(job.x + h * size, size);
}

void QuantizeImageRow(const ImageJob& job, int64_t h) {
  const int64_t size = job.geometry.in_w * job.geometry.in_c;
  int8_t* q = job.image.q + h * size;
  job.row.quantize(job.x + h * size, size, job.inverse, q);
  if (!HasImageOfSums(job.image.source)) return;
  const int64_t sum_size = SumSize(job.weights, job.geometry);
  job.row.sum_groups(q, size, sum_size, job.image.sums + h * (size / sum_size));
}

// One row of outputs: the sums of the pixels in each window, tap by tap.
void SumWindows(const ImageJob& job, int64_t out_row) {
  const Conv2DGeometry& g = job.geometry;
  int32_t* sums = job.image.patch_sums + out_row * g.out_w;
  std::fill_n(sums, g.out_w, 0);
  for (int64_t i = 0; i < g.kernel_h; ++i) {
    const int64_t h = out_row * g.stride_h - g.pad_top + i * g.dilation_h;
    if (h < 0 || h >= g.in_h) continue;
    for (int64_t j = 0; j < g.kernel_w; ++j) {
      // Outputs whose pixel of this tap, out * stride + offset, lies inside the image.
      const int64_t offset = j * g.dilation_w - g.pad_left;
      const int64_t begin = offset >= 0 ? 0 : (-offset + g.stride_w - 1) / g.stride_w;
      const int64_t end =
          offset >= g.in_w ? 0 : std::min(g.out_w, (g.in_w - 1 - offset) / g.stride_w + 1);
      const int32_t* pixels = job.image.sums + h * g.in_w + offset;
      if (g.stride_w == 1) {
        for (int64_t w = begin; w < end; ++w) sums[w] += pixels[w];
      } else {
        for (int64_t w = begin; w < end; ++w) sums[w] += pixels[w * g.stride_w];
      }
    }
  }
}

void RunImageTask(void* arg, int64_t task, int /*worker*/) {
  const ImageJob& job = *static_cast<const ImageJob*>(arg);
  const int64_t end = std::min(job.rows, (task + 1) * job.rows_per_task);
  for (int64_t row = task * job.rows_per_task; row < end; ++row) job.run_row(job, row);
}

// run_row on every row of the image or of the output.
void RunOnRows(ImageJob* job, void (*run_row)(const ImageJob& job, int64_t row), int64_t rows,
               ThreadPool* pool) {
  job->run_row = run_row;
  job->rows = rows;
  RunTasks(pool, (rows + job->rows_per_task - 1) / job->rows_per_task, RunImageTask, job);
}

}  // namespace

QuantizedImage TakeQuantizedImage(const PackedWeights& weights, const Conv2DGeometry& geometry,
                                  Workspace* workspace) {
  const int64_t size = geometry.in_h * geometry.in_w * geometry.in_c;
  QuantizedImage image = {};
  image.source = SourceOfSums(weights, geometry);
  image.largest = workspace->Take<uint32_t>(geometry.in_h);
  if (IsPointwise(geometry)) return image;
  image.q = workspace->Take<int8_t>(size);
  if (HasImageOfSums(image.source)) {
    image.sums = workspace->Take<int32_t>(size / SumSize(weights, geometry));
  }
  if (image.source == PatchSums::kWindow) {
    image.patch_sums = workspace->Take<int32_t>(geometry.out_h * geometry.out_w);
  }
  return image;
}

bool ReadImage(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
               const RowKernel& row, ThreadPool* pool, const QuantizedImage& image, float* scale_x,
               float* inverse) {
  const int64_t rows_per_task =
      std::max<int64_t>(1, kValuesPerTask / (geometry.in_w * geometry.in_c));
  ImageJob job = {weights, geometry, *row.functions, x, image, 0.0f, nullptr, 0, rows_per_task};
  RunOnRows(&job, FindLargest, geometry.in_h, pool);
  const uint32_t largest = *std::max_element(image.largest, image.largest + geometry.in_h);
  if (!ScaleOfLargest(largest, scale_x, &job.inverse)) return false;
  *inverse = job.inverse;
  if (image.q != nullptr) RunOnRows(&job, QuantizeImageRow, geometry.in_h, pool);
  if (image.source == PatchSums::kWindow) RunOnRows(&job, SumWindows, geometry.out_h, pool);
  return true;
}

void WriteInt8Patches(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
                      float inverse, const QuantizedImage& image, const RowKernel& row,
                      int64_t begin, int64_t count, const QuantizedRows& rows) {
  const RowFunctions& functions = *row.functions;
  const int64_t k = weights.k;
  const int64_t stride = ActivationStride(k);
  const int64_t groups = GroupCount(weights);
  if (IsPointwise(geometry)) {
    QuantizePixels(geometry, functions, x, inverse, begin, count, stride, rows.q);
  } else {
    CopyPatches<int8_t>(geometry, functions, geometry.in_c, image.q, begin, count, stride, rows.q);
  }
  switch (image.source) {
    case PatchSums::kNone:
      break;
    case PatchSums::kWindow:
      std::copy_n(image.patch_sums + begin, count, rows.sums);
      break;
    case PatchSums::kPixel:
      CopyPatches<int32_t>(geometry, functions, geometry.in_c / weights.group_size, image.sums,
                           begin, count, groups, rows.sums);
      break;
    case PatchSums::kPatch:
      for (int64_t i = 0; i < count; ++i) {
        functions.sum_groups(rows.q + i * stride, k, GroupSizeOf(weights), rows.sums + i * groups);
      }
  }
}

void WriteFloat32Patches(const Conv2DGeometry& geometry, const float* x, const RowKernel& row,
                         int64_t begin, int64_t count, float* patches) {
  CopyPatches<float>(geometry, *row.functions, geometry.in_c, x, begin, count, geometry.PatchSize(),
                     patches);
}

}  // namespace tfmot_ternary
