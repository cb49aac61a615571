// tflite::MutableOpResolver, as far as registration needs it: one non-virtual member function.
//
// The class is never created, copied or derived from here, so nothing but the mangled name of
// AddCustom matters. See c_api.h for the switch to the real headers.

#ifndef TFMOT_TERNARY_THIRD_PARTY_TFLITE_MUTABLE_OP_RESOLVER_H_
#define TFMOT_TERNARY_THIRD_PARTY_TFLITE_MUTABLE_OP_RESOLVER_H_

#include "third_party/tflite/c_api.h"

#ifdef TFMOT_TERNARY_USE_SYSTEM_TFLITE_HEADERS

#if __has_include("tflite/mutable_op_resolver.h")
#include "tflite/mutable_op_resolver.h"
#else
#include "tensorflow/lite/mutable_op_resolver.h"
#endif

#else

namespace tflite {

class MutableOpResolver {
 public:
  MutableOpResolver() = delete;

  // Copies `registration`; keeps a copy of `name`.
  void AddCustom(const char* name, const TfLiteRegistration* registration, int version = 1);
};

}  // namespace tflite

#endif  // TFMOT_TERNARY_USE_SYSTEM_TFLITE_HEADERS

#endif  // TFMOT_TERNARY_THIRD_PARTY_TFLITE_MUTABLE_OP_RESOLVER_H_
