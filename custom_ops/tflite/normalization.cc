// tfmot_ternary.rms_norm: x [..., n], scale [n] -> [..., n].
// tfmot_ternary.layer_norm: x [..., n], gamma [n], beta [n] -> [..., n].

#include "custom_ops/kernels/normalization.h"

#include <vector>

#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

enum Input { kX, kScale, kBeta, kLayerNormInputs };
constexpr int kRmsNormInputs = kBeta;

bool CheckFactor(OpCall* call, int i, const char* name, int64_t n) {
  const TfLiteTensor* factor = call->Input(i);
  if (!call->CheckTensor(factor, name, kTfLiteFloat32, 1)) return false;
  if (Dim(factor, 0) == n) return true;
  return call->error()->Set("expected %s of shape [%lld], got %s", name, static_cast<long long>(n),
                            ShapeText(factor).text);
}

bool PrepareX(OpCall* call, int inputs, int64_t* n) {
  if (!call->CheckCounts(inputs, inputs)) return false;
  const TfLiteTensor* x = call->Input(kX);
  if (!call->CheckTensor(x, "x", kTfLiteFloat32, -1)) return false;
  const int rank = Rank(x);
  if (rank < 1) return call->error()->Set("expected x of rank 1 or more, got a scalar");
  *n = Dim(x, rank - 1);
  const std::vector<int64_t> shape(x->dims->data, x->dims->data + rank);
  return call->ResizeOutput(shape.data(), rank);
}

bool PrepareRmsNorm(OpCall* call) {
  int64_t n = 0;
  return PrepareX(call, kRmsNormInputs, &n) && CheckFactor(call, kScale, "scale", n);
}

bool PrepareLayerNorm(OpCall* call) {
  int64_t n = 0;
  return PrepareX(call, kLayerNormInputs, &n) && CheckFactor(call, kScale, "gamma", n) &&
         CheckFactor(call, kBeta, "beta", n);
}

bool Eval(OpCall* call) {
  const TfLiteTensor* x = call->Input(kX);
  const TfLiteTensor* beta = call->Input(kBeta);
  const float* scale = call->Input(kScale)->data.f;
  const int last = Rank(x) - 1;
  const int64_t rows = DimProduct(x, 0, last);
  const OpState& state = *call->state();
  const float epsilon = call->options().epsilon;
  float* out = call->Output()->data.f;
  if (beta == nullptr) {
    RmsNorm(x->data.f, rows, Dim(x, last), scale, epsilon, *state.fused, state.pool.get(), out);
  } else {
    LayerNorm(x->data.f, rows, Dim(x, last), scale, beta->data.f, epsilon, *state.fused,
              state.pool.get(), out);
  }
  return true;
}

}  // namespace

const Op kRmsNormOp = {
    "tfmot_ternary.rms_norm", kOptionEpsilon, kOptionEpsilon, PrepareRmsNorm, Eval,
};

const Op kLayerNormOp = {
    "tfmot_ternary.layer_norm", kOptionEpsilon, kOptionEpsilon, PrepareLayerNorm, Eval,
};

}  // namespace tfmot_ternary
