// tfmot_ternary.fully_connected: x [..., k], packed, scales, optional bias [n] -> [..., n].

#include "custom_ops/kernels/fully_connected.h"

#include <vector>

#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

enum Input { kX, kPacked, kScales, kBias, kInputs };

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(kBias, kInputs)) return false;
  const TfLiteTensor* x = call->Input(kX);
  if (!call->CheckTensor(x, "x", kTfLiteFloat32, -1)) return false;
  const int rank = Rank(x);
  if (rank < 1) return call->error()->Set("expected x of shape [..., k], got []");
  const int64_t k = Dim(x, rank - 1);
  if (call->options().k != 0 && call->options().k != k) {
    return call->error()->Set("expected x of shape [..., %lld], got %s",
                              static_cast<long long>(call->options().k), ShapeText(x).text);
  }
  PackedWeights weights;
  if (!call->PrepareWeights(kPacked, k, &weights) || !call->CheckBias(kBias, weights.n)) {
    return false;
  }
  const int64_t m = DimProduct(x, 0, rank - 1);
  std::vector<int64_t> shape(x->dims->data, x->dims->data + rank);
  shape.back() = weights.n;
  return call->ResizeOutput(shape.data(), rank) &&
         call->RequestWorkspace(FullyConnectedWorkspaceBytes(
             weights, m, call->options().activations, call->state()->NumThreads()));
}

bool Eval(OpCall* call) {
  const TfLiteTensor* x = call->Input(kX);
  const int rank = Rank(x);
  const int64_t m = DimProduct(x, 0, rank - 1);
  if (m == 0) return true;
  const PackedWeights weights = call->EvalWeights(kPacked, Dim(x, rank - 1));
  const TfLiteTensor* bias = call->Input(kBias);
  const Epilogue epilogue = {bias == nullptr ? nullptr : bias->data.f, call->options().activation};
  FullyConnected(weights, x->data.f, m, epilogue, call->options().activations,
                 call->state()->kernels, call->Workspace(), call->state()->pool.get(),
                 call->Output()->data.f);
  return true;
}

}  // namespace

const Op kFullyConnectedOp = {
    "tfmot_ternary.fully_connected",
    kOptionWeightFormat | kOptionGroupSize | kOptionActivation | kOptionActivations | kOptionK,
    kOptionWeightFormat,
    Prepare,
    Eval,
};

}  // namespace tfmot_ternary
