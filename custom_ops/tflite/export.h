// Marks the few functions that the shared library shows; all else is hidden.
#ifndef TFMOT_TERNARY_TFLITE_EXPORT_H_
#define TFMOT_TERNARY_TFLITE_EXPORT_H_

#if defined(_WIN32)
#define TFMOT_TERNARY_EXPORT __declspec(dllexport)
#else
#define TFMOT_TERNARY_EXPORT __attribute__((visibility("default")))
#endif

#endif  // TFMOT_TERNARY_TFLITE_EXPORT_H_
