// The external delegate: runs the ops in interpreters whose resolver does not know them.
//
// Every claimed node becomes a delegate kernel of its own, so that all tensors between nodes stay
// in the runtime's hands. A delegate keeps nothing about a graph: one may serve several subgraphs
// and several interpreters, also at the same time.

#include "custom_ops/tflite/delegate.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "custom_ops/tflite/error_text.h"
#include "custom_ops/tflite/int_array.h"
#include "custom_ops/tflite/ops.h"
#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {
namespace {

constexpr int kBuiltinOperatorCustom = 32;  // of TF Lite's schema: "this op has a name"

struct TernaryDelegate {
  TfLiteDelegate base;  // what the runtime sees; base.data_ points back here
  int num_threads = 0;  // 0: as many as the interpreter recommends
};

// One claimed node: the op as its resolver-made self would be, with its own list of tensors. (The
// delegate kernel's list is sorted and without duplicates, hence of no use to an op.)
struct DelegatedNode {
  const OpEntry* entry = nullptr;
  IntArray inputs;
  IntArray outputs;
  OpState* state = nullptr;

  ~DelegatedNode() { FreeOp(state); }
};

void* InitKernel(TfLiteContext* context, const char* buffer, size_t) {
  const auto* params = reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  const auto* delegate = static_cast<const TernaryDelegate*>(params->delegate->data_);
  TfLiteNode* node = nullptr;
  TfLiteRegistration* registration = nullptr;
  if (params->nodes_to_replace->size != 1 ||
      context->GetNodeAndRegistration(context, params->nodes_to_replace->data[0], &node,
                                      &registration) != kTfLiteOk) {
    return nullptr;
  }
  auto kernel = std::unique_ptr<DelegatedNode>(new (std::nothrow) DelegatedNode);
  if (kernel == nullptr) return nullptr;
  kernel->entry = FindOp(registration->custom_name);
  kernel->inputs = CopyIntArray(node->inputs);
  kernel->outputs = CopyIntArray(node->outputs);
  if (kernel->entry == nullptr || kernel->inputs == nullptr || kernel->outputs == nullptr) {
    return nullptr;
  }
  const int size = node->custom_initial_data_size;
  kernel->state = InitOp(*kernel->entry->op, context, node->custom_initial_data,
                         size > 0 ? static_cast<size_t>(size) : 0);
  if (kernel->state != nullptr) kernel->state->num_threads = delegate->num_threads;
  return kernel.release();
}

void FreeKernel(TfLiteContext*, void* kernel) { delete static_cast<DelegatedNode*>(kernel); }

// Calls an op on the delegate kernel's node, with the original lists of tensors in it.
TfLiteStatus CallOp(TfLiteStatus (*function)(const Op&, TfLiteContext*, TfLiteNode*, OpState*),
                    TfLiteContext* context, TfLiteNode* node) {
  auto* kernel = static_cast<DelegatedNode*>(node->user_data);
  if (kernel == nullptr) {
    context->ReportError(context, "tfmot_ternary delegate: expected a node to be set up, got none");
    return kTfLiteError;
  }
  TfLiteNode original = *node;
  original.inputs = kernel->inputs.get();
  original.outputs = kernel->outputs.get();
  const TfLiteStatus status = function(*kernel->entry->op, context, &original, kernel->state);
  node->temporaries = original.temporaries;  // Prepare may have made the list of temporaries anew
  return status;
}

TfLiteStatus PrepareKernel(TfLiteContext* context, TfLiteNode* node) {
  return CallOp(PrepareOp, context, node);
}

TfLiteStatus EvalKernel(TfLiteContext* context, TfLiteNode* node) {
  return CallOp(EvalOp, context, node);
}

TfLiteStatus Claim(TfLiteContext* context, TfLiteDelegate* delegate) {
  TfLiteIntArray* plan = nullptr;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) return kTfLiteDelegateError;
  const IntArray nodes = CopyIntArray(plan);  // claiming rewrites the plan
  const IntArray claimed = MakeIntArray(1);
  if (nodes == nullptr || claimed == nullptr) return kTfLiteDelegateError;
  for (int i = 0; i < nodes->size; ++i) {
    TfLiteNode* node = nullptr;
    TfLiteRegistration* registration = nullptr;
    if (context->GetNodeAndRegistration(context, nodes->data[i], &node, &registration) !=
        kTfLiteOk) {
      return kTfLiteDelegateError;
    }
    if (registration->builtin_code != kBuiltinOperatorCustom) continue;
    const OpEntry* entry = FindOp(registration->custom_name);
    if (entry == nullptr) continue;
    TfLiteRegistration kernel = {};
    kernel.init = InitKernel;
    kernel.free = FreeKernel;
    kernel.prepare = PrepareKernel;
    kernel.invoke = EvalKernel;
    kernel.custom_name = entry->op->name;  // profilers show it
    kernel.version = 1;
    claimed->data[0] = nodes->data[i];
    const TfLiteStatus status =
        context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, claimed.get(), delegate);
    if (status != kTfLiteOk) return status;
  }
  return kTfLiteOk;
}

bool ReadNumThreads(const char* value, int* num_threads, ErrorText* error) {
  constexpr long kMaxThreads = 1024;
  char* end = nullptr;
  errno = 0;
  const long number = value == nullptr ? -1 : std::strtol(value, &end, 10);
  if (number < 0 || number > kMaxThreads || errno != 0 || end == value || *end != '\0') {
    return error->Set(
        "tfmot_ternary delegate: expected num_threads from 0 (as the interpreter) to %ld, got "
        "\"%.60s\"",
        kMaxThreads, value == nullptr ? "(null)" : value);
  }
  *num_threads = static_cast<int>(number);
  return true;
}

bool ReadDelegateOptions(const char* const* keys, const char* const* values, size_t count,
                         TernaryDelegate* delegate, ErrorText* error) {
  for (size_t i = 0; i < count; ++i) {
    if (keys[i] == nullptr || std::strcmp(keys[i], "num_threads") != 0) {
      return error->Set("tfmot_ternary delegate: expected option num_threads, got \"%.60s\"",
                        keys[i] == nullptr ? "(null)" : keys[i]);
    }
    if (!ReadNumThreads(values[i], &delegate->num_threads, error)) return false;
  }
  return true;
}

}  // namespace
}  // namespace tfmot_ternary

extern "C" TfLiteDelegate* tflite_plugin_create_delegate(
    const char* const* keys, const char* const* values, size_t count,
    void (*report_error)(const char* message)) {
  using tfmot_ternary::TernaryDelegate;
  tfmot_ternary::ErrorText error;
  auto delegate = std::unique_ptr<TernaryDelegate>(new (std::nothrow) TernaryDelegate{});
  if (delegate == nullptr) {
    error.Set("tfmot_ternary delegate: expected memory, got none");
  } else if (tfmot_ternary::ReadDelegateOptions(keys, values, count, delegate.get(), &error)) {
    delegate->base.data_ = delegate.get();
    delegate->base.Prepare = tfmot_ternary::Claim;
    delegate->base.flags = kTfLiteDelegateFlagsAllowDynamicTensors;
    return &delegate.release()->base;
  }
  if (report_error != nullptr) report_error(error.c_str());
  return nullptr;
}

extern "C" void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  if (delegate != nullptr) delete static_cast<tfmot_ternary::TernaryDelegate*>(delegate->data_);
}
