#include "custom_ops/tflite/op_options.h"

#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>

#include "custom_ops/kernels/weights.h"
#include "custom_ops/tflite/flexbuffer.h"

namespace tfmot_ternary {
namespace {

using Entry = FlexBufferMap::Entry;
using Kind = FlexBufferMap::Kind;

// Text options: the parser of the tokens, which are listed for the message.
struct TextOption {
  const char* name;
  uint32_t bit;
  const char* tokens;
  bool (*parse)(const char* token, OpOptions* options);
};

constexpr TextOption kTextOptions[] = {
    {"weight_format", kOptionWeightFormat, "\"t2\", \"t5\" or \"b1\"",
     [](const char* token, OpOptions* options) { return ParseFormat(token, &options->format); }},
    {"activation", kOptionActivation, "\"none\", \"relu\" or \"relu6\"",
     [](const char* token, OpOptions* options) {
       return ParseActivation(token, &options->activation);
     }},
    {"activations", kOptionActivations, "\"int8\" or \"float32\"",
     [](const char* token, OpOptions* options) {
       return ParseActivations(token, &options->activations);
     }},
    {"padding", kOptionPadding, "\"SAME\" or \"VALID\"",
     [](const char* token, OpOptions* options) { return ParsePadding(token, &options->padding); }},
    {"kind", kOptionKind, "\"gelu\", \"gelu_tanh\" or \"silu\"",
     [](const char* token, OpOptions* options) {
       return ParseActivationKind(token, &options->kind);
     }},
    {"input_layout", kOptionInputLayout, "\"halves\" or \"pairs\"",
     [](const char* token, OpOptions* options) {
       return ParsePairLayout(token, &options->input_layout);
     }},
    {"output_layout", kOptionOutputLayout, "\"halves\" or \"pairs\"",
     [](const char* token, OpOptions* options) {
       return ParsePairLayout(token, &options->output_layout);
     }},
    {"cache_type", kOptionCacheType, "\"float32\", \"float16\" or \"int8\"",
     [](const char* token, OpOptions* options) {
       return ParseCacheType(token, &options->cache_type);
     }},
    {"part", kOptionPart, "\"key\" or \"value\"",
     [](const char* token, OpOptions* options) {
       options->part = std::strcmp(token, "key") == 0 ? CachePart::kKey : CachePart::kValue;
       return options->part == CachePart::kKey || std::strcmp(token, "value") == 0;
     }},
};

// Integer options other than group_size: at least `minimum`, at most `maximum`.
struct IntegerOption {
  const char* name;
  uint32_t bit;
  int64_t maximum;
  int64_t OpOptions::* member;
  int64_t minimum = 1;
};

// TF Lite counts in int32; kernels and steps of 65536 pixels are beyond any image it can hold.
constexpr int64_t kMaxPixels = 65536;
// Positions of a cache: beyond any language model's.
constexpr int64_t kMaxCacheLength = 1 << 24;

constexpr IntegerOption kIntegerOptions[] = {
    {"k", kOptionK, kMaxK, &OpOptions::k},
    {"kernel_h", kOptionKernel, kMaxPixels, &OpOptions::kernel_h},
    {"kernel_w", kOptionKernel, kMaxPixels, &OpOptions::kernel_w},
    {"stride_h", kOptionStride, kMaxPixels, &OpOptions::stride_h},
    {"stride_w", kOptionStride, kMaxPixels, &OpOptions::stride_w},
    {"dilation_h", kOptionDilation, kMaxPixels, &OpOptions::dilation_h},
    {"dilation_w", kOptionDilation, kMaxPixels, &OpOptions::dilation_w},
    {"layer", kOptionLayer, INT32_MAX, &OpOptions::layer, 0},
    {"cache_length", kOptionCacheLength, kMaxCacheLength, &OpOptions::cache_length},
};

// Real options: at least `minimum`, finite in float32.
struct RealOption {
  const char* name;
  uint32_t bit;
  float minimum;
  float OpOptions::* member;
};

constexpr RealOption kRealOptions[] = {
    {"epsilon", kOptionEpsilon, 0.0f, &OpOptions::epsilon},
    {"amplitude", kOptionAmplitude, 0.0f, &OpOptions::amplitude},
    {"scale", kOptionScale, 0.0f, &OpOptions::scale},
    {"soft_cap", kOptionSoftCap, 0.0f, &OpOptions::soft_cap},
};

constexpr char kGroupSizeName[] = "group_size";

// Marks the composite for the converter, which leaves it among the options: it says nothing here.
constexpr char kFusableOpName[] = "tfl_fusable_op";

bool WrongKind(const Entry& entry, const char* expected, ErrorText* error) {
  if (entry.kind == Kind::kString) {
    return error->Set("expected option %.40s to be %s, got \"%.40s\"", entry.key, expected,
                      entry.text);
  }
  if (entry.kind == Kind::kReal) {
    return error->Set("expected option %.40s to be %s, got %g", entry.key, expected, entry.real);
  }
  return error->Set("expected option %.40s to be %s, got %s %lld", entry.key, expected,
                    entry.kind == Kind::kBoolean ? "the boolean" : "the integer",
                    static_cast<long long>(entry.integer));
}

bool ReadText(const TextOption& option, const Entry& entry, OpOptions* options, ErrorText* error) {
  if (entry.kind != Kind::kString || !option.parse(entry.text, options)) {
    return WrongKind(entry, option.tokens, error);
  }
  return true;
}

bool ReadInteger(const IntegerOption& option, const Entry& entry, OpOptions* options,
                 ErrorText* error) {
  if (entry.kind != Kind::kInteger || entry.integer < option.minimum ||
      entry.integer > option.maximum) {
    char expected[64];
    std::snprintf(expected, sizeof(expected), "an integer from %lld to %lld",
                  static_cast<long long>(option.minimum), static_cast<long long>(option.maximum));
    return WrongKind(entry, expected, error);
  }
  options->*option.member = entry.integer;
  return true;
}

bool ReadReal(const RealOption& option, const Entry& entry, OpOptions* options, ErrorText* error) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  // A NaN fails the comparisons.
  if (entry.kind != Kind::kReal || !(entry.real >= option.minimum && entry.real <= kLargest)) {
    char expected[64];
    std::snprintf(expected, sizeof(expected), "a finite real number from %g on",
                  static_cast<double>(option.minimum));
    return WrongKind(entry, expected, error);
  }
  options->*option.member = static_cast<float>(entry.real);
  return true;
}

bool ReadGroupSize(const Entry& entry, OpOptions* options, ErrorText* error) {
  if (entry.kind != Kind::kInteger || (entry.integer != 0 && !IsValidGroupSize(entry.integer))) {
    return WrongKind(entry, "0, 32, 64, 128 or 256", error);
  }
  options->group_size = entry.integer;
  return true;
}

// One position in the tables for each option, to notice a second value for it.
constexpr size_t kGroupSizeIndex = std::size(kTextOptions) + std::size(kIntegerOptions);
constexpr size_t kRealIndex = kGroupSizeIndex + 1;
constexpr size_t kOptionCount = kRealIndex + std::size(kRealOptions);

struct Reader {
  uint32_t allowed;
  OpOptions* options;
  ErrorText* error;
  bool given[kOptionCount] = {};

  bool Unknown(const Entry& entry) const {
    return error->Set(
        "expected only options of this op, got \"%.60s\"; the model may need a newer "
        "tfmot_ternary library",
        entry.key);
  }

  bool Begin(const Entry& entry, uint32_t bit, size_t index) {
    if ((allowed & bit) == 0) return Unknown(entry);
    if (given[index]) return error->Set("expected option %.40s once, got it twice", entry.key);
    given[index] = true;
    return true;
  }

  bool Read(const Entry& entry) {
    if (std::strcmp(entry.key, kFusableOpName) == 0) return true;
    if (std::strcmp(entry.key, kGroupSizeName) == 0) {
      return Begin(entry, kOptionGroupSize, kGroupSizeIndex) &&
             ReadGroupSize(entry, options, error);
    }
    for (size_t i = 0; i < std::size(kTextOptions); ++i) {
      const TextOption& option = kTextOptions[i];
      if (std::strcmp(entry.key, option.name) != 0) continue;
      return Begin(entry, option.bit, i) && ReadText(option, entry, options, error);
    }
    for (size_t i = 0; i < std::size(kIntegerOptions); ++i) {
      const IntegerOption& option = kIntegerOptions[i];
      if (std::strcmp(entry.key, option.name) != 0) continue;
      return Begin(entry, option.bit, std::size(kTextOptions) + i) &&
             ReadInteger(option, entry, options, error);
    }
    for (size_t i = 0; i < std::size(kRealOptions); ++i) {
      const RealOption& option = kRealOptions[i];
      if (std::strcmp(entry.key, option.name) != 0) continue;
      return Begin(entry, option.bit, kRealIndex + i) && ReadReal(option, entry, options, error);
    }
    return Unknown(entry);
  }

  bool Missing(const char* name) const {
    return error->Set("expected option %s, got options without it", name);
  }

  bool CheckRequired(uint32_t required) const {
    for (size_t i = 0; i < std::size(kTextOptions); ++i) {
      if ((required & kTextOptions[i].bit) != 0 && !given[i]) return Missing(kTextOptions[i].name);
    }
    for (size_t i = 0; i < std::size(kIntegerOptions); ++i) {
      if ((required & kIntegerOptions[i].bit) != 0 && !given[std::size(kTextOptions) + i]) {
        return Missing(kIntegerOptions[i].name);
      }
    }
    for (size_t i = 0; i < std::size(kRealOptions); ++i) {
      if ((required & kRealOptions[i].bit) != 0 && !given[kRealIndex + i]) {
        return Missing(kRealOptions[i].name);
      }
    }
    return true;
  }
};

}  // namespace

bool ReadOpOptions(const void* data, size_t size, uint32_t allowed, uint32_t required,
                   OpOptions* options, ErrorText* error) {
  *options = OpOptions();
  FlexBufferMap map;
  const char* damage = map.Parse(data, size);
  if (damage != nullptr) return error->Set("options of %zu bytes: %s", size, damage);
  Reader reader{allowed, options, error};
  for (const Entry& entry : map.entries()) {
    if (!reader.Read(entry)) return false;
  }
  return reader.CheckRequired(required);
}

}  // namespace tfmot_ternary
