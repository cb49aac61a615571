// What happens to the sums of a product: scales, bias, activation.
#ifndef TFMOT_TERNARY_KERNELS_EPILOGUE_H_
#define TFMOT_TERNARY_KERNELS_EPILOGUE_H_

#include <cstdint>

namespace tfmot_ternary {

enum class Activation : uint8_t { kNone, kRelu, kRelu6 };

// "none", "relu", "relu6". Returns false, and leaves *out alone, for any other token (or null).
bool ParseActivation(const char* token, Activation* out);

struct Epilogue {
  const float* bias;  // [n], or null
  Activation activation;
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_EPILOGUE_H_
