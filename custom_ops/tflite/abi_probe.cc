// A delegate that claims nothing and writes down what it sees through our declarations of the TF
// Lite C ABI. tests/test_delegate.py compares the text with the model it made: a field that moved
// shows.

#include <cstddef>
#include <cstdio>
#include <string>

#include "custom_ops/tflite/export.h"
#include "third_party/tflite/c_api.h"

namespace {

std::string& Text() {
  static std::string* text = new std::string;
  return *text;
}

void Append(const TfLiteIntArray* array) {
  for (int i = 0; array != nullptr && i < array->size; ++i) {
    Text() += (i == 0 ? "" : ",") + std::to_string(array->data[i]);
  }
  Text() += ";";
}

TfLiteStatus Probe(TfLiteContext* context, TfLiteDelegate*) {
  Text() = "threads " + std::to_string(context->recommended_num_threads) + "\n";
  for (size_t i = 0; i < context->tensors_size; ++i) {
    const TfLiteTensor& tensor = context->tensors[i];
    Text() += "tensor " + std::string(tensor.name == nullptr ? "" : tensor.name) + ";" +
              std::to_string(tensor.type) + ";" + std::to_string(tensor.allocation_type) + ";" +
              std::to_string(tensor.bytes) + ";" + std::to_string(tensor.is_variable) + ";";
    Append(tensor.dims);
    Append(tensor.dims_signature);
    Text() += "\n";
  }
  TfLiteIntArray* plan = nullptr;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) return kTfLiteError;
  for (int i = 0; i < plan->size; ++i) {
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) !=
        kTfLiteOk) {
      return kTfLiteError;
    }
    Text() += "node " + std::to_string(registration->builtin_code) + ";" +
              (registration->custom_name == nullptr ? "" : registration->custom_name) + ";" +
              std::to_string(registration->version) + ";" +
              std::to_string(node->custom_initial_data_size) + ";" +
              std::to_string(node->delegate == nullptr) + ";";
    Append(node->inputs);
    Append(node->outputs);
    Text() += "\n";
  }
  return kTfLiteOk;
}

}  // namespace

extern "C" {

TFMOT_TERNARY_EXPORT const char* abi_probe_text() { return Text().c_str(); }

TFMOT_TERNARY_EXPORT TfLiteDelegate* tflite_plugin_create_delegate(const char* const*,
                                                                   const char* const*, size_t,
                                                                   void (*)(const char*)) {
  auto* delegate = new TfLiteDelegate{};
  delegate->Prepare = Probe;
  delegate->flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  return delegate;
}

TFMOT_TERNARY_EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  delete delegate;
}

}  // extern "C"
