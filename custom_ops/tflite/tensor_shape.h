// The shape of a tensor: sizes, products and text for messages.
#ifndef TFMOT_TERNARY_TFLITE_TENSOR_SHAPE_H_
#define TFMOT_TERNARY_TFLITE_TENSOR_SHAPE_H_

#include <cstdint>
#include <cstdio>

#include "third_party/tflite/c_api.h"

namespace tfmot_ternary {

inline int Rank(const TfLiteTensor* tensor) {
  return tensor->dims == nullptr ? 0 : tensor->dims->size;
}

inline int64_t Dim(const TfLiteTensor* tensor, int axis) { return tensor->dims->data[axis]; }

// Product of the sizes of the axes [first, last).
inline int64_t DimProduct(const TfLiteTensor* tensor, int first, int last) {
  int64_t product = 1;
  for (int axis = first; axis < last; ++axis) product *= Dim(tensor, axis);
  return product;
}

// "[2, 3]", cut with "..." where there are too many axes to show.
struct ShapeText {
  explicit ShapeText(const TfLiteTensor* tensor) {
    int used = std::snprintf(text, sizeof(text), "[");
    for (int axis = 0; axis < Rank(tensor); ++axis) {
      if (used > static_cast<int>(sizeof(text)) - 24) {
        std::snprintf(text + used, sizeof(text) - used, ", ...]");
        return;
      }
      used += std::snprintf(text + used, sizeof(text) - used, axis == 0 ? "%lld" : ", %lld",
                            static_cast<long long>(Dim(tensor, axis)));
    }
    std::snprintf(text + used, sizeof(text) - used, "]");
  }

  char text[96];
};

// "float32" and so on; "type 17" for types that the ops never take.
struct TypeText {
  explicit TypeText(TfLiteType type) {
    const char* name = type == kTfLiteFloat32 ? "float32"
                       : type == kTfLiteInt32 ? "int32"
                       : type == kTfLiteUInt8 ? "uint8"
                       : type == kTfLiteInt64 ? "int64"
                       : type == kTfLiteInt8  ? "int8"
                       : type == kTfLiteBool  ? "bool"
                                              : nullptr;
    if (name != nullptr) {
      std::snprintf(text, sizeof(text), "%s", name);
    } else {
      std::snprintf(text, sizeof(text), "type %d", static_cast<int>(type));
    }
  }

  char text[24];
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_TENSOR_SHAPE_H_
