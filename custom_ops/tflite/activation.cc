// tfmot_ternary.activation: x [...] -> [...].

#include "custom_ops/kernels/activation.h"

#include <vector>

#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(1, 1)) return false;
  const TfLiteTensor* x = call->Input(0);
  if (!call->CheckTensor(x, "x", kTfLiteFloat32, -1)) return false;
  std::vector<int64_t> shape;
  for (int axis = 0; axis < Rank(x); ++axis) shape.push_back(Dim(x, axis));
  return call->ResizeOutput(shape.data(), Rank(x));
}

bool Eval(OpCall* call) {
  const TfLiteTensor* x = call->Input(0);
  const OpState& state = *call->state();
  ActivateAll(x->data.f, DimProduct(x, 0, Rank(x)), call->options().kind, *state.fused,
              state.pool.get(), call->Output()->data.f);
  return true;
}

}  // namespace

const Op kActivationOp = {
    "tfmot_ternary.activation", kOptionKind, kOptionKind, Prepare, Eval,
};

}  // namespace tfmot_ternary
