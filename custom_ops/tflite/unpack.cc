// tfmot_ternary.unpack: packed [n, row_bytes(k)], scales -> float32 [n, k], for ops that take only
// dense weights.

#include "custom_ops/kernels/unpack.h"

#include "custom_ops/tflite/op.h"

namespace tfmot_ternary {
namespace {

enum Input { kPacked, kScales, kInputs };

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(kInputs, kInputs)) return false;
  PackedWeights weights;
  if (!call->PrepareWeights(kPacked, call->options().k, &weights)) return false;
  const int64_t shape[] = {weights.n, weights.k};
  return call->ResizeOutput(shape, 2);
}

bool Eval(OpCall* call) {
  const PackedWeights weights = call->EvalWeights(kPacked, call->options().k);
  Unpack(weights, call->state()->kernels, call->state()->pool.get(), call->Output()->data.f);
  return true;
}

}  // namespace

const Op kUnpackOp = {
    "tfmot_ternary.unpack",
    kOptionWeightFormat | kOptionGroupSize | kOptionK,
    kOptionWeightFormat | kOptionK,
    Prepare,
    Eval,
};

}  // namespace tfmot_ternary
