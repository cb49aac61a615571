// For tests: as much of an interpreter as the ops need. One node; tensors in plain memory.
#ifndef TFMOT_TERNARY_TFLITE_FAKE_INTERPRETER_H_
#define TFMOT_TERNARY_TFLITE_FAKE_INTERPRETER_H_

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "custom_ops/tflite/int_array.h"
#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {

class FakeInterpreter {
 public:
  explicit FakeInterpreter(const TfLiteRegistration& registration, int num_threads)
      : registration_(registration), context_(), node_() {
    context_.impl_ = this;
    context_.recommended_num_threads = num_threads;
    context_.ResizeTensor = [](TfLiteContext*, TfLiteTensor* tensor, TfLiteIntArray* shape) {
      std::free(tensor->dims);
      tensor->dims = shape;
      tensor->bytes = tensor->type == kTfLiteUInt8 ? 1 : 4;
      for (int i = 0; i < shape->size; ++i) tensor->bytes *= static_cast<size_t>(shape->data[i]);
      return kTfLiteOk;
    };
    context_.AddTensors = [](TfLiteContext* context, int count, int* first) {
      auto* self = static_cast<FakeInterpreter*>(context->impl_);
      *first = static_cast<int>(self->tensors_.size());
      for (int i = 0; i < count; ++i) self->tensors_.push_back(TfLiteTensor{});
      self->Publish();
      return kTfLiteOk;
    };
    context_.ReportError = ReportError;
  }

  ~FakeInterpreter() {
    if (initialized_) registration_.free(&context_, node_.user_data);
    for (TfLiteTensor& tensor : tensors_) {
      std::free(tensor.dims);
      if (tensor.allocation_type != kTfLiteMmapRo) std::free(tensor.data.data);
    }
    std::free(node_.temporaries);
  }
  FakeInterpreter(const FakeInterpreter&) = delete;
  FakeInterpreter& operator=(const FakeInterpreter&) = delete;

  // Adds a tensor; data != null makes it a constant.
  int AddTensor(TfLiteType type, const std::vector<int>& shape, const void* data = nullptr) {
    TfLiteTensor tensor = {};
    tensor.type = type;
    tensor.allocation_type = data == nullptr ? kTfLiteArenaRw : kTfLiteMmapRo;
    tensor.data.data = const_cast<void*>(data);
    TfLiteIntArray* dims = MakeIntArray(static_cast<int>(shape.size())).release();
    for (size_t i = 0; i < shape.size(); ++i) dims->data[i] = shape[i];
    context_.ResizeTensor(&context_, &tensor, dims);
    tensors_.push_back(tensor);
    Publish();
    return static_cast<int>(tensors_.size()) - 1;
  }

  void SetNode(const std::vector<int>& inputs, int output, const std::vector<uint8_t>& options) {
    inputs_ = MakeIntArray(static_cast<int>(inputs.size()));
    for (size_t i = 0; i < inputs.size(); ++i) inputs_->data[i] = inputs[i];
    outputs_ = MakeIntArray(1);
    outputs_->data[0] = output;
    node_.inputs = inputs_.get();
    node_.outputs = outputs_.get();
    node_.user_data = registration_.init(&context_, reinterpret_cast<const char*>(options.data()),
                                         options.size());
    initialized_ = true;
  }

  // Prepare, then memory for everything that is no constant, as a planner would give it.
  bool AllocateTensors() {
    if (registration_.prepare(&context_, &node_) != kTfLiteOk) return false;
    for (TfLiteTensor& tensor : tensors_) {
      if (tensor.allocation_type == kTfLiteMmapRo) continue;
      std::free(tensor.data.data);
      const size_t bytes = (tensor.bytes + 63) / 64 * 64;
      tensor.data.data = bytes == 0 ? nullptr : std::aligned_alloc(64, bytes);
    }
    return true;
  }

  bool Invoke() { return registration_.invoke(&context_, &node_) == kTfLiteOk; }

  TfLiteTensor* tensor(int index) { return &tensors_[static_cast<size_t>(index)]; }

  std::string error;

 private:
  static void ReportError(TfLiteContext* context, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    static_cast<FakeInterpreter*>(context->impl_)->error += text;
  }

  void Publish() {
    context_.tensors = tensors_.data();
    context_.tensors_size = tensors_.size();
  }

  TfLiteRegistration registration_;
  TfLiteContext context_;
  TfLiteNode node_;
  IntArray inputs_, outputs_;
  std::vector<TfLiteTensor> tensors_;
  bool initialized_ = false;
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_FAKE_INTERPRETER_H_
