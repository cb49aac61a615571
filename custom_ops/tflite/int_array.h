// TfLiteIntArray made by us: the wheels export no function that makes one.
#ifndef TFMOT_TERNARY_TFLITE_INT_ARRAY_H_
#define TFMOT_TERNARY_TFLITE_INT_ARRAY_H_

#include <cstdlib>
#include <cstring>
#include <memory>

#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {

struct IntArrayDeleter {
  void operator()(TfLiteIntArray* array) const { std::free(array); }
};

// Owned here until release()d to the runtime, which frees with free().
using IntArray = std::unique_ptr<TfLiteIntArray, IntArrayDeleter>;

// An array of `size` zeros; null when memory is short.
inline IntArray MakeIntArray(int size) {
  const size_t bytes = sizeof(TfLiteIntArray) + sizeof(int) * static_cast<size_t>(size);
  IntArray array(static_cast<TfLiteIntArray*>(std::calloc(1, bytes)));
  if (array != nullptr) array->size = size;
  return array;
}

// A copy of `other`; null when `other` is or when memory is short.
inline IntArray CopyIntArray(const TfLiteIntArray* other) {
  if (other == nullptr) return nullptr;
  IntArray array = MakeIntArray(other->size);
  if (array != nullptr) {
    for (int i = 0; i < other->size; ++i) array->data[i] = other->data[i];
  }
  return array;
}

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_INT_ARRAY_H_
