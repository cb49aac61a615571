// The external delegate's entry points, for programs that link the library instead of loading it.
//
//   TfLiteDelegate* delegate = tflite_plugin_create_delegate(nullptr, nullptr, 0, nullptr);
//   interpreter->ModifyGraphWithDelegate(delegate);   // before AllocateTensors
//   ...                                               // the delegate outlives the interpreter
//   tflite_plugin_destroy_delegate(delegate);
#ifndef TFMOT_TERNARY_TFLITE_DELEGATE_H_
#define TFMOT_TERNARY_TFLITE_DELEGATE_H_

#include <cstddef>

#include "custom_ops/tflite/export.h"
#include "third_party/tflite/c_api.h"

extern "C" {

// A delegate that runs the tfmot_ternary.* ops. One option: num_threads, "0" (as many threads as
// the interpreter recommends; the default) to "1024". On error: null, and the message through
// report_error where one is given. The signature is TF Lite's for external delegates.
TFMOT_TERNARY_EXPORT TfLiteDelegate* tflite_plugin_create_delegate(
    const char* const* keys, const char* const* values, size_t count,
    void (*report_error)(const char* message));

// Takes null too.
TFMOT_TERNARY_EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate);

}  // extern "C"

#endif  // TFMOT_TERNARY_TFLITE_DELEGATE_H_
