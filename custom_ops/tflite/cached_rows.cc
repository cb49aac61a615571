// tfmot_ternary.cached_rows: update [1, t, heads, dim], position int32 [1] ->
// [1, cache_length, heads, dim]. Stores the update in its cache and returns all of it.

#include <algorithm>

#include "custom_ops/tflite/layer_caches.h"
#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

enum Input { kUpdate, kPosition, kInputs };

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(kInputs, kInputs)) return false;
  const TfLiteTensor* update = call->Input(kUpdate);
  const TfLiteTensor* position = call->Input(kPosition);
  if (!call->CheckTensor(update, "update", kTfLiteFloat32, 4) ||
      !call->CheckTensor(position, "position", kTfLiteInt32, 1)) {
    return false;
  }
  if (Dim(update, 0) != 1 || Dim(position, 0) != 1) {
    return call->error()->Set("expected update of one sequence and one position, got %s and %s",
                              ShapeText(update).text, ShapeText(position).text);
  }
  const CacheShape shape = {CacheType::kFloat32, call->options().cache_length, Dim(update, 2),
                            Dim(update, 3)};
  call->state()->memory = AcquireRowCache(call->context(), call->options().layer,
                                          call->options().part, shape, call->error());
  if (call->state()->memory == nullptr) return false;
  const int64_t dims[] = {1, shape.length, shape.kv_heads, shape.head_dim};
  return call->ResizeOutput(dims, 4);
}

bool Eval(OpCall* call) {
  const TfLiteTensor* update = call->Input(kUpdate);
  const RowCache& cache = *static_cast<const RowCache*>(call->state()->memory.get());
  const int64_t length = cache.shape.length;
  const int64_t position = call->Input(kPosition)->data.i32[0];
  if (position < 0 || position >= length) {
    return call->error()->Set(
        "expected a position in [0, %lld), got %lld; a longer text needs a model converted with a "
        "longer cache",
        static_cast<long long>(length), static_cast<long long>(position));
  }
  const int64_t row = cache.shape.kv_heads * cache.shape.head_dim;
  const int64_t stored = std::min(Dim(update, 1), length - position);
  std::copy_n(update->data.f, stored * row, cache.rows + position * row);
  std::copy_n(cache.rows, length * row, call->Output()->data.f);
  return true;
}

}  // namespace

const Op kCachedRowsOp = {
    "tfmot_ternary.cached_rows",
    kOptionLayer | kOptionCacheLength | kOptionPart,
    kOptionLayer | kOptionCacheLength | kOptionPart,
    Prepare,
    Eval,
};

}  // namespace tfmot_ternary
