// tfmot_ternary.rotary: x [batch, length, ..., width], position int32 [1] or [length],
// inverse_frequencies [pairs] -> [batch, length, ..., width].

#include "custom_ops/kernels/rotary.h"

#include <vector>

#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

enum Input { kX, kPosition, kInverseFrequencies, kInputs };

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(kInputs, kInputs)) return false;
  const TfLiteTensor* x = call->Input(kX);
  const TfLiteTensor* position = call->Input(kPosition);
  const TfLiteTensor* frequencies = call->Input(kInverseFrequencies);
  if (!call->CheckTensor(x, "x", kTfLiteFloat32, -1) ||
      !call->CheckTensor(position, "position", kTfLiteInt32, 1) ||
      !call->CheckTensor(frequencies, "inverse_frequencies", kTfLiteFloat32, 1)) {
    return false;
  }
  const int rank = Rank(x);
  if (rank < 3) {
    return call->error()->Set("expected x of shape [batch, length, ..., width], got %s",
                              ShapeText(x).text);
  }
  if (Dim(position, 0) != 1 && Dim(position, 0) != Dim(x, 1)) {
    return call->error()->Set("expected position of shape [1] or [%lld], got %s",
                              static_cast<long long>(Dim(x, 1)), ShapeText(position).text);
  }
  if (Dim(frequencies, 0) > Dim(x, rank - 1) / 2) {
    return call->error()->Set("expected at most %lld inverse_frequencies for x of shape %s, got %s",
                              static_cast<long long>(Dim(x, rank - 1) / 2), ShapeText(x).text,
                              ShapeText(frequencies).text);
  }
  const std::vector<int64_t> shape(x->dims->data, x->dims->data + rank);
  return call->ResizeOutput(shape.data(), rank);
}

bool Eval(OpCall* call) {
  const TfLiteTensor* x = call->Input(kX);
  const TfLiteTensor* position = call->Input(kPosition);
  const TfLiteTensor* frequencies = call->Input(kInverseFrequencies);
  const OpOptions& options = call->options();
  const OpState& state = *call->state();
  const int last = Rank(x) - 1;
  const RotaryProblem problem = {
      Dim(x, 0),
      Dim(x, 1),
      DimProduct(x, 2, last),
      Dim(x, last),
      Dim(frequencies, 0),
      frequencies->data.f,
      position->data.i32,
      Dim(position, 0) != 1,
      options.amplitude,
      options.input_layout,
      options.output_layout,
  };
  Rotary(problem, x->data.f, *state.fused, state.pool.get(), call->Output()->data.f);
  return true;
}

}  // namespace

const Op kRotaryOp = {
    "tfmot_ternary.rotary",
    kOptionAmplitude | kOptionInputLayout | kOptionOutputLayout,
    0,
    Prepare,
    Eval,
};

}  // namespace tfmot_ternary
