// Example: a C++ program gives the standard OpResolver an op of its own and the tfmot_ternary ops.
//
// With TF Lite's C++ API at hand the call is one line between the resolver and the interpreter:
//
//   tflite::ops::builtin::BuiltinOpResolver resolver;
//   TfmotTernaryRegisterOps(&resolver);
//   tflite::InterpreterBuilder(*model, resolver)(&interpreter);
//
// tests/test_registration.py builds this file into a library, lets TensorFlow's interpreter call
// ExampleRegisterOps with its BuiltinOpResolver, and runs a model with both kinds of ops.

#include <cstddef>

#include "custom_ops/tflite/export.h"
#include "custom_ops/tflite/int_array.h"
#include "custom_ops/tflite/register.h"
#include "third_party/tflite/c_api.h"
#include "third_party/tflite/mutable_op_resolver.h"

namespace {

// example.negate: float32 in, float32 of the same shape out.
TfLiteStatus PrepareNegate(TfLiteContext* context, TfLiteNode* node) {
  if (node->inputs->size != 1 || node->outputs->size != 1) return kTfLiteError;
  const TfLiteTensor& x = context->tensors[node->inputs->data[0]];
  return context->ResizeTensor(context, &context->tensors[node->outputs->data[0]],
                               tfmot_ternary::CopyIntArray(x.dims).release());
}

TfLiteStatus EvalNegate(TfLiteContext* context, TfLiteNode* node) {
  const TfLiteTensor& x = context->tensors[node->inputs->data[0]];
  float* y = context->tensors[node->outputs->data[0]].data.f;
  for (size_t i = 0; i < x.bytes / sizeof(float); ++i) y[i] = -x.data.f[i];
  return kTfLiteOk;
}

}  // namespace

extern "C" TFMOT_TERNARY_EXPORT void ExampleRegisterOps(tflite::MutableOpResolver* resolver) {
  TfLiteRegistration negate = {};
  negate.prepare = PrepareNegate;
  negate.invoke = EvalNegate;
  negate.custom_name = "example.negate";
  negate.version = 1;
  resolver->AddCustom("example.negate", &negate);

  TfmotTernaryRegisterOps(resolver);
}
