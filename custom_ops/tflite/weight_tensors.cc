// Packed weights and scales as tensors: their checks, and the view that the kernels get.

#include <cmath>

#include "custom_ops/kernels/format.h"
#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

// Constants have their values in Prepare already; anything else gets them before Eval.
bool IsConstant(const TfLiteTensor* tensor) {
  return tensor->allocation_type == kTfLiteMmapRo || tensor->allocation_type == kTfLitePersistentRo;
}

void View(const OpOptions& options, const TfLiteTensor* packed, const TfLiteTensor* scales,
          int64_t k, PackedWeights* weights) {
  weights->format = options.format;
  weights->n = Dim(packed, 0);
  weights->k = k;
  weights->data = packed->data.uint8;
  weights->scales = scales->data.f;
  weights->group_size = options.group_size;
  if (options.group_size != 0) {
    weights->layout = ScaleLayout::kGroup;
  } else {
    weights->layout = Dim(scales, 0) == 1 ? ScaleLayout::kTensor : ScaleLayout::kChannel;
  }
}

bool CheckScalesShape(const OpOptions& options, const TfLiteTensor* scales, int64_t n, int64_t k,
                      ErrorText* error) {
  const int rank = Rank(scales);
  if (options.group_size == 0) {
    if (rank == 1 && (Dim(scales, 0) == 1 || Dim(scales, 0) == n)) return true;
    return error->Set("expected scales of shape [1] or [%lld] (group_size 0), got %s",
                      static_cast<long long>(n), ShapeText(scales).text);
  }
  const int64_t groups = (k + options.group_size - 1) / options.group_size;
  if (rank == 2 && Dim(scales, 0) == n && Dim(scales, 1) == groups) return true;
  return error->Set("expected scales of shape [%lld, %lld] (group_size %lld, k %lld), got %s",
                    static_cast<long long>(n), static_cast<long long>(groups),
                    static_cast<long long>(options.group_size), static_cast<long long>(k),
                    ShapeText(scales).text);
}

bool CheckCodes(const PackedWeights& weights, ErrorText* error) {
  const int64_t row_bytes = RowBytes(weights.format, weights.k);
  for (int64_t row = 0; row < weights.n; ++row) {
    const uint8_t* bytes = weights.data + row * row_bytes;
    const int64_t invalid = FindInvalidByte(weights.format, bytes, weights.k);
    if (invalid < 0) continue;
    return error->Set("expected valid %s codes, got byte %d at row %lld, byte %lld",
                      FormatToken(weights.format), static_cast<int>(bytes[invalid]),
                      static_cast<long long>(row), static_cast<long long>(invalid));
  }
  return true;
}

bool CheckScales(const TfLiteTensor* scales, ErrorText* error) {
  const int64_t count = DimProduct(scales, 0, Rank(scales));
  for (int64_t i = 0; i < count; ++i) {
    const float scale = scales->data.f[i];
    if (std::isfinite(scale) && scale >= 0) continue;
    const int64_t columns = Rank(scales) == 2 ? Dim(scales, 1) : 1;
    return error->Set("expected finite scales >= 0, got %g at row %lld, group %lld",
                      static_cast<double>(scale), static_cast<long long>(i / columns),
                      static_cast<long long>(i % columns));
  }
  return true;
}

}  // namespace

bool OpCall::PrepareWeights(int first, int64_t k, PackedWeights* weights) {
  const TfLiteTensor* packed = Input(first);
  const TfLiteTensor* scales = Input(first + 1);
  if (!CheckTensor(packed, "packed", kTfLiteUInt8, 2) ||
      !CheckTensor(scales, "scales", kTfLiteFloat32, -1)) {
    return false;
  }
  if (k < 1 || k > MaxK(options().format)) {
    return error_.Set("expected k from 1 to %lld (%s), got %lld",
                      static_cast<long long>(MaxK(options().format)), FormatToken(options().format),
                      static_cast<long long>(k));
  }
  const int64_t row_bytes = RowBytes(options().format, k);
  if (Dim(packed, 0) < 1 || Dim(packed, 1) != row_bytes) {
    return error_.Set("expected packed of shape [n, %lld] (%s, k %lld), got %s",
                      static_cast<long long>(row_bytes), FormatToken(options().format),
                      static_cast<long long>(k), ShapeText(packed).text);
  }
  if (!CheckScalesShape(options(), scales, Dim(packed, 0), k, &error_)) return false;
  View(options(), packed, scales, k, weights);

  if (IsConstant(packed) && state_->checked_packed != packed->data.data) {
    if (weights->data == nullptr) return error_.Set("expected packed to hold data, got none");
    if (!CheckCodes(*weights, &error_)) return false;
    state_->checked_packed = packed->data.data;
  }
  if (IsConstant(scales) && state_->checked_scales != scales->data.data) {
    if (weights->scales == nullptr) return error_.Set("expected scales to hold data, got none");
    if (!CheckScales(scales, &error_)) return false;
    state_->checked_scales = scales->data.data;
  }
  return true;
}

PackedWeights OpCall::EvalWeights(int first, int64_t k) const {
  PackedWeights weights;
  View(options(), Input(first), Input(first + 1), k, &weights);
  return weights;
}

}  // namespace tfmot_ternary
