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

// The upper left corner of the patches, output by output.
class Corner {
 public:
  Corner(const Conv2DGeometry& geometry, int64_t output)
      : geometry_(geometry),
        column_(output % geometry.out_w),
        top_(output / geometry.out_w * geometry.stride_h - geometry.pad_top),
        left_(column_ * geometry.stride_w - geometry.pad_left) {}

  int64_t top() const { return top_; }
  int64_t left() const { return left_; }

  void Advance() {
    left_ += geometry_.stride_w;
    if (++column_ < geometry_.out_w) return;
    column_ = 0;
    left_ = -geometry_.pad_left;
    top_ += geometry_.stride_h;
  }

 private:
  const Conv2DGeometry& geometry_;
  int64_t column_, top_, left_;
};

// Copies the patch at a corner from an image of `channels` values a pixel, zero outside of it.
template <typename T>
void CopyPatch(const Conv2DGeometry& geometry, const RowFunctions& row, int64_t channels,
               const T* image, const Corner& corner, T* patch) {
  const int64_t top = corner.top();
  const int64_t left = corner.left();
  const int64_t last_h = top + (geometry.kernel_h - 1) * geometry.dilation_h;
  const int64_t last_w = left + (geometry.kernel_w - 1) * geometry.dilation_w;
  const int64_t image_row = geometry.in_w * channels;
  if (geometry.dilation_w == 1 && top >= 0 && left >= 0 && last_h < geometry.in_h &&
      last_w < geometry.in_w) {
    const int64_t size = sizeof(T);
    row.copy_runs(reinterpret_cast<const uint8_t*>(image + top * image_row + left * channels),
                  geometry.dilation_h * image_row * size, geometry.kernel_h,
                  geometry.kernel_w * channels * size, reinterpret_cast<uint8_t*>(patch));
    return;
  }
  for (int64_t h = top; h <= last_h; h += geometry.dilation_h) {
    for (int64_t w = left; w <= last_w; w += geometry.dilation_w, patch += channels) {
      if (h >= 0 && h < geometry.in_h && w >= 0 && w < geometry.in_w) {
        std::memcpy(patch, image + h * image_row + w * channels,
                    static_cast<size_t>(channels) * sizeof(T));
      } else {
        std::memset(patch, 0, static_cast<size_t>(channels) * sizeof(T));
      }
    }
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
  if (job.image.sums == nullptr) return;
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

PatchSums SourceOfSums(const PackedWeights& weights, const Conv2DGeometry& geometry) {
  if (IsPointwise(geometry)) return PatchSums::kPatch;
  if (weights.layout != ScaleLayout::kGroup) return PatchSums::kWindow;
  return geometry.in_c % weights.group_size == 0 ? PatchSums::kPixel : PatchSums::kPatch;
}

QuantizedImage TakeQuantizedImage(const PackedWeights& weights, const Conv2DGeometry& geometry,
                                  Workspace* workspace) {
  const int64_t size = geometry.in_h * geometry.in_w * geometry.in_c;
  const PatchSums source = SourceOfSums(weights, geometry);
  QuantizedImage image = {};
  image.largest = workspace->Take<uint32_t>(geometry.in_h);
  if (IsPointwise(geometry)) return image;
  image.q = workspace->Take<int8_t>(size);
  if (source != PatchSums::kPatch) {
    image.sums = workspace->Take<int32_t>(size / SumSize(weights, geometry));
  }
  if (source == PatchSums::kWindow) {
    image.patch_sums = workspace->Take<int32_t>(geometry.out_h * geometry.out_w);
  }
  return image;
}

bool ReadImage(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
               const RowKernel& row, ThreadPool* pool, QuantizedImage* image, float* scale_x,
               float* inverse) {
  const int64_t rows_per_task =
      std::max<int64_t>(1, kValuesPerTask / (geometry.in_w * geometry.in_c));
  ImageJob job = {weights, geometry, *row.functions, x, *image, 0.0f, nullptr, 0, rows_per_task};
  RunOnRows(&job, FindLargest, geometry.in_h, pool);
  const uint32_t largest = *std::max_element(image->largest, image->largest + geometry.in_h);
  if (!ScaleOfLargest(largest, scale_x, &job.inverse)) return false;
  *inverse = job.inverse;
  if (image->q != nullptr) RunOnRows(&job, QuantizeImageRow, geometry.in_h, pool);
  if (image->patch_sums != nullptr) RunOnRows(&job, SumWindows, geometry.out_h, pool);
  return true;
}

void WriteInt8Patches(const PackedWeights& weights, const Conv2DGeometry& geometry, const float* x,
                      float inverse, const QuantizedImage& image, const RowKernel& row,
                      int64_t begin, int64_t count, const QuantizedRows& rows) {
  const RowFunctions& functions = *row.functions;
  const int64_t k = weights.k;
  const int64_t stride = ActivationStride(k);
  const int64_t groups = GroupCount(weights);
  const bool grouped = weights.layout == ScaleLayout::kGroup;
  const bool pointwise = IsPointwise(geometry);
  const PatchSums source = SourceOfSums(weights, geometry);
  const int64_t pixel_sums = geometry.in_c / SumSize(weights, geometry);
  Corner corner(geometry, begin);
  for (int64_t i = 0; i < count; ++i, corner.Advance()) {
    int8_t* q = rows.q + i * stride;
    int32_t* sums = rows.sums + i * groups;
    if (pointwise) {
      functions.quantize(x + (corner.top() * geometry.in_w + corner.left()) * k, k, inverse, q);
    } else {
      CopyPatch<int8_t>(geometry, functions, geometry.in_c, image.q, corner, q);
    }
    if (source == PatchSums::kWindow) {
      *sums = image.patch_sums[begin + i];
    } else if (source == PatchSums::kPixel) {
      CopyPatch<int32_t>(geometry, functions, pixel_sums, image.sums, corner, sums);
    } else {
      functions.sum_groups(q, k, grouped ? weights.group_size : k, sums);
    }
  }
}

void WriteFloat32Patches(const Conv2DGeometry& geometry, const float* x, const RowKernel& row,
                         int64_t begin, int64_t count, float* patches) {
  const int64_t k = geometry.PatchSize();
  Corner corner(geometry, begin);
  for (int64_t i = 0; i < count; ++i, corner.Advance()) {
    CopyPatch<float>(geometry, *row.functions, geometry.in_c, x, corner, patches + i * k);
  }
}

}  // namespace tfmot_ternary
