// Registration of the ops with the standard OpResolver.
#ifndef TFMOT_TERNARY_TFLITE_REGISTER_H_
#define TFMOT_TERNARY_TFLITE_REGISTER_H_

#include "custom_ops/tflite/export.h"

namespace tflite {
class MutableOpResolver;
}

// Adds the tfmot_ternary.* ops to `resolver`, which may be a BuiltinOpResolver. The caller's
// program must contain tflite::MutableOpResolver::AddCustom; where it does not, a message goes to
// stderr and `resolver` stays as it is.
extern "C" TFMOT_TERNARY_EXPORT void TfmotTernaryRegisterOps(tflite::MutableOpResolver* resolver);

#endif  // TFMOT_TERNARY_TFLITE_REGISTER_H_
