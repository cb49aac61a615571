// tfmot_ternary.embedding_lookup: ids int32 [...], packed [vocabulary, row_bytes(k)], scales ->
// [..., k].

#include <vector>

#include "custom_ops/kernels/unpack.h"
#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

enum Input { kIds, kPacked, kScales, kInputs };

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(kInputs, kInputs)) return false;
  const TfLiteTensor* ids = call->Input(kIds);
  if (!call->CheckTensor(ids, "ids", kTfLiteInt32, -1)) return false;
  PackedWeights weights;
  if (!call->PrepareWeights(kPacked, call->options().k, &weights)) return false;
  const int rank = Rank(ids);
  std::vector<int64_t> shape(static_cast<size_t>(rank) + 1, weights.k);
  for (int axis = 0; axis < rank; ++axis) shape[static_cast<size_t>(axis)] = Dim(ids, axis);
  return call->ResizeOutput(shape.data(), rank + 1);
}

bool Eval(OpCall* call) {
  const TfLiteTensor* ids = call->Input(kIds);
  const int64_t count = DimProduct(ids, 0, Rank(ids));
  if (count == 0) return true;
  const PackedWeights weights = call->EvalWeights(kPacked, call->options().k);
  const int64_t outside = EmbeddingLookup(weights, ids->data.i32, count, call->state()->kernels,
                                          call->state()->pool.get(), call->Output()->data.f);
  if (outside < 0) return true;
  return call->error()->Set("expected ids in [0, %lld), got %d at position %lld",
                            static_cast<long long>(weights.n), ids->data.i32[outside],
                            static_cast<long long>(outside));
}

}  // namespace

const Op kEmbeddingLookupOp = {
    "tfmot_ternary.embedding_lookup",
    kOptionWeightFormat | kOptionGroupSize | kOptionK,
    kOptionWeightFormat | kOptionK,
    Prepare,
    Eval,
};

}  // namespace tfmot_ternary
