// The options of a custom op, read from its FlexBuffer.
#ifndef TFMOT_TERNARY_TFLITE_OP_OPTIONS_H_
#define TFMOT_TERNARY_TFLITE_OP_OPTIONS_H_

#include <cstddef>
#include <cstdint>

#include "custom_ops/kernels/attention_cache.h"
#include "custom_ops/kernels/conv2d.h"
#include "custom_ops/kernels/epilogue.h"
#include "custom_ops/kernels/format.h"
#include "custom_ops/kernels/fully_connected.h"
#include "custom_ops/kernels/fused.h"
#include "custom_ops/tflite/error_text.h"

namespace tfmot_ternary {

// The options that exist, as bits of a set.
enum OptionBit : uint32_t {
  kOptionWeightFormat = 1u << 0,
  kOptionGroupSize = 1u << 1,
  kOptionActivation = 1u << 2,
  kOptionActivations = 1u << 3,
  kOptionK = 1u << 4,
  kOptionKernel = 1u << 5,  // kernel_h and kernel_w
  kOptionStride = 1u << 6,
  kOptionDilation = 1u << 7,
  kOptionPadding = 1u << 8,
  kOptionKind = 1u << 9,
  kOptionEpsilon = 1u << 10,
  kOptionAmplitude = 1u << 11,
  kOptionInputLayout = 1u << 12,
  kOptionOutputLayout = 1u << 13,
  kOptionLayer = 1u << 16,
  kOptionCacheLength = 1u << 17,
  kOptionCacheType = 1u << 18,
  kOptionScale = 1u << 19,
  kOptionSoftCap = 1u << 20,
  kOptionPart = 1u << 21,
};

// What cached_rows keeps: a layer has a cache for each.
enum class CachePart : uint8_t { kKey, kValue };

// Values of left-out options are the defaults below.
struct OpOptions {
  Format format = Format::kT2;
  int64_t group_size = 0;  // 0: one scale per tensor or channel, as the scales' shape tells
  Activation activation = Activation::kNone;
  Activations activations = Activations::kInt8;
  int64_t k = 0;  // weights per row
  int64_t kernel_h = 0, kernel_w = 0;
  int64_t stride_h = 1, stride_w = 1;
  int64_t dilation_h = 1, dilation_w = 1;
  Padding padding = Padding::kValid;
  ActivationKind kind = ActivationKind::kGelu;
  float epsilon = 0.0f;
  float amplitude = 1.0f;  // of the cosines and sines of rotary
  PairLayout input_layout = PairLayout::kHalves;
  PairLayout output_layout = PairLayout::kHalves;
  int64_t layer = 0;  // tells the caches of an interpreter apart
  int64_t cache_length = 0;
  CacheType cache_type = CacheType::kFloat32;
  float scale = 1.0f;     // of attention scores
  float soft_cap = 0.0f;  // 0: none
  CachePart part = CachePart::kKey;
};

// Reads `size` bytes at `data`. `allowed` and `required` are sets of OptionBit. Returns false with
// *error set when the bytes are damaged, an option is unknown to the op, missing, given twice, or
// has a value out of its range.
bool ReadOpOptions(const void* data, size_t size, uint32_t allowed, uint32_t required,
                   OpOptions* options, ErrorText* error);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_OP_OPTIONS_H_
