// tfmot_ternary.cached_attention: query [1, t, heads, dim], key and value [1, t, kv_heads, dim],
// position int32 [1], optional mask bool [1, t, cache_length] -> [1, t, heads, dim]. Stores key and
// value in the cache of its layer, then attends.

#include "custom_ops/kernels/attention.h"
#include "custom_ops/kernels/cpu.h"
#include "custom_ops/tflite/layer_caches.h"
#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

enum Input { kQuery, kKey, kValue, kPosition, kMask, kInputs };

bool CheckShape(OpCall* call, const TfLiteTensor* tensor, const char* name, int64_t steps,
                int64_t dim) {
  if (!call->CheckTensor(tensor, name, kTfLiteFloat32, 4)) return false;
  if (Dim(tensor, 0) != 1 || Dim(tensor, 1) != steps || Dim(tensor, 2) < 1 ||
      Dim(tensor, 3) != dim) {
    return call->error()->Set("expected %s of shape [1, %lld, heads, %lld], got %s", name,
                              static_cast<long long>(steps), static_cast<long long>(dim),
                              ShapeText(tensor).text);
  }
  return true;
}

bool CheckInputs(OpCall* call) {
  const TfLiteTensor* query = call->Input(kQuery);
  const TfLiteTensor* key = call->Input(kKey);
  const TfLiteTensor* value = call->Input(kValue);
  const TfLiteTensor* position = call->Input(kPosition);
  const TfLiteTensor* mask = call->Input(kMask);
  if (!call->CheckTensor(query, "query", kTfLiteFloat32, 4)) return false;
  const int64_t steps = Dim(query, 1);
  const int64_t dim = Dim(query, 3);
  if (dim < 1 || dim > kMaxHeadDim) {
    return call->error()->Set("expected heads of 1 to %lld values, got %lld",
                              static_cast<long long>(kMaxHeadDim), static_cast<long long>(dim));
  }
  if (!CheckShape(call, query, "query", steps, dim) || !CheckShape(call, key, "key", steps, dim) ||
      !CheckShape(call, value, "value", steps, dim) ||
      !call->CheckTensor(position, "position", kTfLiteInt32, 1)) {
    return false;
  }
  const int64_t kv_heads = Dim(key, 2);
  if (Dim(value, 2) != kv_heads || Dim(query, 2) % kv_heads != 0) {
    return call->error()->Set(
        "expected key and value with as many heads, a divisor of the query's %lld, got %lld and "
        "%lld",
        static_cast<long long>(Dim(query, 2)), static_cast<long long>(kv_heads),
        static_cast<long long>(Dim(value, 2)));
  }
  if (Dim(position, 0) != 1) {
    return call->error()->Set("expected position of shape [1], got %s", ShapeText(position).text);
  }
  if (mask == nullptr) return true;
  if (!call->CheckTensor(mask, "mask", kTfLiteBool, 3)) return false;
  if (Dim(mask, 0) != 1 || Dim(mask, 1) != steps || Dim(mask, 2) != call->options().cache_length) {
    return call->error()->Set(
        "expected mask of shape [1, %lld, %lld], got %s", static_cast<long long>(steps),
        static_cast<long long>(call->options().cache_length), ShapeText(mask).text);
  }
  return true;
}

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(kMask, kInputs) || !CheckInputs(call)) return false;
  const TfLiteTensor* query = call->Input(kQuery);
  const CacheShape shape = {call->options().cache_type, call->options().cache_length,
                            Dim(call->Input(kKey), 2), Dim(query, 3)};
  OpState* state = call->state();
  state->memory =
      AcquireAttentionCache(call->context(), call->options().layer, shape, call->error());
  if (state->memory == nullptr) return false;
  if (state->attention == nullptr) state->attention = SelectAttention(DetectCpu());
  const int64_t dims[] = {1, Dim(query, 1), Dim(query, 2), Dim(query, 3)};
  return call->ResizeOutput(dims, 4) && call->RequestWorkspace(AttentionWorkspaceBytes(
                                            shape, dims[1], dims[2], state->NumThreads()));
}

bool Eval(OpCall* call) {
  const TfLiteTensor* query = call->Input(kQuery);
  const TfLiteTensor* mask = call->Input(kMask);
  OpState* state = call->state();
  AttentionCache* cache = static_cast<AttentionCache*>(state->memory.get());
  const int64_t position = call->Input(kPosition)->data.i32[0];
  if (position < 0 || position >= cache->shape().length) {
    return call->error()->Set(
        "expected a position in [0, %lld), got %lld; a longer text needs a model converted with a "
        "longer cache",
        static_cast<long long>(cache->shape().length), static_cast<long long>(position));
  }
  const int64_t steps = Dim(query, 1);
  if (steps == 0) return true;
  const RowKernel& row = *state->kernels.row;
  StoreInCache(cache, call->Input(kKey)->data.f, call->Input(kValue)->data.f, steps, position,
               *state->attention, row, call->Workspace(), state->pool.get());
  AttentionQuery asked = {};
  asked.query = query->data.f;
  asked.steps = steps;
  asked.heads = Dim(query, 2);
  asked.position = position;
  asked.mask = mask == nullptr ? nullptr : mask->data.uint8;
  asked.scale = call->options().scale;
  asked.soft_cap = call->options().soft_cap;
  Attend(*cache, asked, *state->attention, row, call->Workspace(), state->pool.get(),
         call->Output()->data.f);
  return true;
}

}  // namespace

const Op kCachedAttentionOp = {
    "tfmot_ternary.cached_attention",
    kOptionLayer | kOptionCacheLength | kOptionCacheType | kOptionScale | kOptionSoftCap,
    kOptionLayer | kOptionCacheLength | kOptionScale,
    Prepare,
    Eval,
};

}  // namespace tfmot_ternary
