#include "custom_ops/tflite/ops.h"

#include <cstring>

namespace tfmot_ternary {
namespace {

template <const Op* op>
OpEntry MakeEntry() {
  OpEntry entry = {};
  entry.op = op;
  TfLiteRegistration& registration = entry.registration;
  registration.init = [](TfLiteContext* context, const char* buffer, size_t length) -> void* {
    return InitOp(*op, context, buffer, length);
  };
  registration.free = [](TfLiteContext*, void* state) { FreeOp(static_cast<OpState*>(state)); };
  registration.prepare = [](TfLiteContext* context, TfLiteNode* node) {
    return PrepareOp(*op, context, node, static_cast<OpState*>(node->user_data));
  };
  registration.invoke = [](TfLiteContext* context, TfLiteNode* node) {
    return EvalOp(*op, context, node, static_cast<OpState*>(node->user_data));
  };
  registration.custom_name = op->name;
  registration.version = 1;
  return entry;
}

}  // namespace

const OpEntry* AllOps() {
  static const OpEntry entries[kOpCount] = {
      MakeEntry<&kFullyConnectedOp>(), MakeEntry<&kConv2DOp>(),  MakeEntry<&kEmbeddingLookupOp>(),
      MakeEntry<&kUnpackOp>(),         MakeEntry<&kRmsNormOp>(), MakeEntry<&kLayerNormOp>(),
      MakeEntry<&kActivationOp>(),     MakeEntry<&kRotaryOp>(),  MakeEntry<&kCachedAttentionOp>(),
      MakeEntry<&kCachedRowsOp>(),
  };
  return entries;
}

const OpEntry* FindOp(const char* name) {
  if (name == nullptr) return nullptr;
  const OpEntry* entries = AllOps();
  for (int i = 0; i < kOpCount; ++i) {
    if (std::strcmp(entries[i].op->name, name) == 0) return &entries[i];
  }
  return nullptr;
}

}  // namespace tfmot_ternary
