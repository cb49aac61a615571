#include "custom_ops/kernels/epilogue.h"

#include <cstring>

namespace tfmot_ternary {

bool ParseActivation(const char* token, Activation* out) {
  static constexpr const char* kTokens[] = {"none", "relu", "relu6"};
  if (token == nullptr) return false;
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(token, kTokens[i]) == 0) {
      *out = static_cast<Activation>(i);
      return true;
    }
  }
  return false;
}

}  // namespace tfmot_ternary
