#include "custom_ops/tflite/op.h"

#include <cstdlib>
#include <new>

#include "custom_ops/kernels/cpu.h"
#include "custom_ops/tflite/int_array.h"
#include "custom_ops/tflite/op_times.h"
#include "custom_ops/tflite/tensor_shape.h"
#include "custom_ops/tflite/thread_pools.h"

namespace tfmot_ternary {

const TfLiteTensor* OpCall::Input(int i) const {
  if (node_->inputs == nullptr || i >= node_->inputs->size) return nullptr;
  const int index = node_->inputs->data[i];
  if (index < 0 || static_cast<size_t>(index) >= context_->tensors_size) return nullptr;
  return &context_->tensors[index];
}

TfLiteTensor* OpCall::Output() const { return &context_->tensors[node_->outputs->data[0]]; }

bool OpCall::CheckCounts(int min_inputs, int max_inputs) {
  const int inputs = node_->inputs == nullptr ? 0 : node_->inputs->size;
  const int outputs = node_->outputs == nullptr ? 0 : node_->outputs->size;
  if (inputs < min_inputs || inputs > max_inputs) {
    return min_inputs == max_inputs
               ? error_.Set("expected %d inputs, got %d", min_inputs, inputs)
               : error_.Set("expected %d to %d inputs, got %d", min_inputs, max_inputs, inputs);
  }
  if (outputs != 1) return error_.Set("expected 1 output, got %d", outputs);
  const int output = node_->outputs->data[0];
  if (output < 0 || static_cast<size_t>(output) >= context_->tensors_size) {
    return error_.Set("expected an output tensor, got index %d of %zu tensors", output,
                      context_->tensors_size);
  }
  return true;
}

bool OpCall::CheckTensor(const TfLiteTensor* tensor, const char* name, TfLiteType type, int rank) {
  if (tensor == nullptr) return error_.Set("expected input %s, got none", name);
  if (tensor->type != type) {
    return error_.Set("expected %s of type %s, got %s", name, TypeText(type).text,
                      TypeText(tensor->type).text);
  }
  if (rank >= 0 && Rank(tensor) != rank) {
    return error_.Set("expected %s of rank %d, got shape %s", name, rank, ShapeText(tensor).text);
  }
  return true;
}

bool OpCall::CheckBias(int i, int64_t n) {
  const TfLiteTensor* bias = Input(i);
  if (bias == nullptr) return true;
  if (!CheckTensor(bias, "bias", kTfLiteFloat32, 1)) return false;
  if (Dim(bias, 0) != n) {
    return error_.Set("expected bias of shape [%lld], got %s", static_cast<long long>(n),
                      ShapeText(bias).text);
  }
  return true;
}

bool OpCall::ResizeOutput(const int64_t* dims, int rank) {
  TfLiteTensor* output = Output();
  if (!CheckTensor(output, "output", kTfLiteFloat32, -1)) return false;
  IntArray shape = MakeIntArray(rank);
  if (shape == nullptr) return error_.Set("expected memory for a shape, got none");
  for (int axis = 0; axis < rank; ++axis) {
    if (dims[axis] < 0 || dims[axis] > INT32_MAX) {
      return error_.Set("expected an output with axes below 2^31, got %lld",
                        static_cast<long long>(dims[axis]));
    }
    shape->data[axis] = static_cast<int>(dims[axis]);
  }
  if (context_->ResizeTensor(context_, output, shape.release()) != kTfLiteOk) {
    return error_.Set("expected the output to be resized, got an error of the interpreter");
  }
  return true;
}

bool OpCall::RequestWorkspace(size_t bytes) {
  // At least one byte: planners treat empty tensors as absent.
  const size_t wanted = bytes == 0 ? 1 : bytes;
  if (wanted > static_cast<size_t>(INT32_MAX)) {
    return error_.Set("expected a workspace below 2^31 bytes, got %zu", wanted);
  }
  if (state_->workspace_tensor < 0) return error_.Set("expected a workspace tensor, got none");
  IntArray temporaries = MakeIntArray(1);
  IntArray shape = MakeIntArray(1);
  if (temporaries == nullptr || shape == nullptr) {
    return error_.Set("expected memory for a shape, got none");
  }
  temporaries->data[0] = state_->workspace_tensor;
  shape->data[0] = static_cast<int>(wanted);
  std::free(node_->temporaries);
  node_->temporaries = temporaries.release();
  TfLiteTensor* workspace = &context_->tensors[state_->workspace_tensor];
  workspace->type = kTfLiteUInt8;
  workspace->allocation_type = kTfLiteArenaRw;
  if (context_->ResizeTensor(context_, workspace, shape.release()) != kTfLiteOk) {
    return error_.Set("expected a workspace of %zu bytes, got an error of the interpreter", bytes);
  }
  return true;
}

const TfLiteTensor* OpCall::InputOrOutput(int i) const {
  return i < InputCount() ? Input(i) : Output();
}

void OpCall::RecordShapes() {
  std::vector<int>& shapes = state_->prepared_shapes;
  shapes.clear();
  for (int i = 0; i <= InputCount(); ++i) {
    const TfLiteTensor* tensor = InputOrOutput(i);
    if (tensor == nullptr) continue;
    shapes.push_back(Rank(tensor));
    for (int axis = 0; axis < Rank(tensor); ++axis) shapes.push_back(tensor->dims->data[axis]);
  }
}

bool OpCall::CheckShapes() {
  const std::vector<int>& shapes = state_->prepared_shapes;
  size_t next = 0;
  for (int i = 0; i <= InputCount(); ++i) {
    const TfLiteTensor* tensor = InputOrOutput(i);
    if (tensor == nullptr) continue;
    const int rank = Rank(tensor);
    bool same = next < shapes.size() && shapes[next] == rank;
    for (int axis = 0; same && axis < rank; ++axis) {
      same = shapes[next + 1 + static_cast<size_t>(axis)] == tensor->dims->data[axis];
    }
    if (!same) {
      return error_.Set("expected tensor %d to keep its shape after Prepare, got %s", i,
                        ShapeText(tensor).text);
    }
    if (tensor->bytes > 0 && tensor->data.data == nullptr) {
      return error_.Set("expected tensor %d to hold %zu bytes, got no data", i, tensor->bytes);
    }
    next += 1 + static_cast<size_t>(rank);
  }
  return true;
}

void* OpCall::Workspace() const { return context_->tensors[state_->workspace_tensor].data.data; }

OpState* InitOp(const Op& op, TfLiteContext* context, const void* options, size_t size) {
  OpState* state = new (std::nothrow) OpState;
  if (state == nullptr) return nullptr;
  ReadOpOptions(options, size, op.allowed_options, op.required_options, &state->options,
                &state->options_error);
  if (context->AddTensors(context, 1, &state->workspace_tensor) != kTfLiteOk) {
    state->workspace_tensor = -1;
  }
  return state;
}

void FreeOp(OpState* state) { delete state; }

namespace {

TfLiteStatus Report(const Op& op, TfLiteContext* context, const ErrorText& error) {
  context->ReportError(context, "%s: %s", op.name, error.c_str());
  return kTfLiteError;
}

}  // namespace

TfLiteStatus PrepareOp(const Op& op, TfLiteContext* context, TfLiteNode* node, OpState* state) {
  OpCall call(context, node, state);
  if (state == nullptr) {
    call.error()->Set("expected memory for the state of a node, got none");
    return Report(op, context, *call.error());
  }
  if (!state->options_error.empty()) return Report(op, context, state->options_error);
  if (!state->kernels_selected) {
    const CpuFlags flags = DetectCpu();
    state->kernels = SelectKernels(flags, state->options.format);
    state->fused = SelectFused(flags);
    state->kernels_selected = true;
  }
  const int recommended = context->recommended_num_threads;
  state->pool =
      AcquireThreadPool(context, state->num_threads > 0 ? state->num_threads : recommended);
  if (!op.prepare(&call)) return Report(op, context, *call.error());
  call.RecordShapes();
  return kTfLiteOk;
}

TfLiteStatus EvalOp(const Op& op, TfLiteContext* context, TfLiteNode* node, OpState* state) {
  const OpTimer timer(op.name);
  OpCall call(context, node, state);
  return call.CheckShapes() && op.eval(&call) ? kTfLiteOk : Report(op, context, *call.error());
}

}  // namespace tfmot_ternary
