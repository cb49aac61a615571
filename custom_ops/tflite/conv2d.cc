// tfmot_ternary.conv2d: x [b, h, w, c], packed [n, row_bytes(kh * kw * c)], scales, optional bias
// [n] -> [b, oh, ow, n].

#include "custom_ops/kernels/conv2d.h"

#include "custom_ops/tflite/op.h"
#include "custom_ops/tflite/tensor_shape.h"

namespace tfmot_ternary {
namespace {

enum Input { kX, kPacked, kScales, kBias, kInputs };

// False when the kernel does not fit into the image. An empty batch has the geometry of one image.
bool Geometry(const OpOptions& options, const TfLiteTensor* x, Conv2DGeometry* geometry) {
  geometry->batch = Dim(x, 0) == 0 ? 1 : Dim(x, 0);
  geometry->in_h = Dim(x, 1);
  geometry->in_w = Dim(x, 2);
  geometry->in_c = Dim(x, 3);
  geometry->kernel_h = options.kernel_h;
  geometry->kernel_w = options.kernel_w;
  geometry->stride_h = options.stride_h;
  geometry->stride_w = options.stride_w;
  geometry->dilation_h = options.dilation_h;
  geometry->dilation_w = options.dilation_w;
  return SetOutput(options.padding, geometry);
}

bool Prepare(OpCall* call) {
  if (!call->CheckCounts(kBias, kInputs)) return false;
  const TfLiteTensor* x = call->Input(kX);
  if (!call->CheckTensor(x, "x", kTfLiteFloat32, 4)) return false;
  Conv2DGeometry geometry;
  if (!Geometry(call->options(), x, &geometry)) {
    const OpOptions& o = call->options();
    return call->error()->Set(
        "expected x of shape [batch, h, w, c] that a kernel of %lld x %lld with dilations %lld x "
        "%lld fits into, got %s",
        static_cast<long long>(o.kernel_h), static_cast<long long>(o.kernel_w),
        static_cast<long long>(o.dilation_h), static_cast<long long>(o.dilation_w),
        ShapeText(x).text);
  }
  PackedWeights weights;
  if (!call->PrepareWeights(kPacked, geometry.PatchSize(), &weights) ||
      !call->CheckBias(kBias, weights.n)) {
    return false;
  }
  const int64_t shape[] = {Dim(x, 0), geometry.out_h, geometry.out_w, weights.n};
  return call->ResizeOutput(shape, 4) &&
         call->RequestWorkspace(Conv2DWorkspaceBytes(weights, geometry, call->options().activations,
                                                     call->state()->NumThreads()));
}

bool Eval(OpCall* call) {
  const TfLiteTensor* x = call->Input(kX);
  if (Dim(x, 0) == 0) return true;
  Conv2DGeometry geometry;
  Geometry(call->options(), x, &geometry);
  const PackedWeights weights = call->EvalWeights(kPacked, geometry.PatchSize());
  const TfLiteTensor* bias = call->Input(kBias);
  const Epilogue epilogue = {bias == nullptr ? nullptr : bias->data.f, call->options().activation};
  Conv2D(weights, geometry, x->data.f, epilogue, call->options().activations,
         call->state()->kernels, call->Workspace(), call->state()->pool.get(),
         call->Output()->data.f);
  return true;
}

}  // namespace

const Op kConv2DOp = {
    "tfmot_ternary.conv2d",
    kOptionWeightFormat | kOptionGroupSize | kOptionActivation | kOptionActivations |
        kOptionKernel | kOptionStride | kOptionDilation | kOptionPadding,
    kOptionWeightFormat | kOptionKernel | kOptionPadding,
    Prepare,
    Eval,
};

}  // namespace tfmot_ternary
