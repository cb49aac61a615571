// The table of the custom ops, by name.
#ifndef TFMOT_TERNARY_TFLITE_OPS_H_
#define TFMOT_TERNARY_TFLITE_OPS_H_

#include "custom_ops/tflite/op.h"
#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {

struct OpEntry {
  const Op* op;
  TfLiteRegistration registration;  // for an OpResolver
};

constexpr int kOpCount = 10;

// kOpCount entries.
const OpEntry* AllOps();

// The entry of that name, or null (also for a null name).
const OpEntry* FindOp(const char* name);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_OPS_H_
