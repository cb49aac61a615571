#include "custom_ops/kernels/fused.h"

#include <cstring>

#include "custom_ops/kernels/fused_body.h"

namespace tfmot_ternary {

TFMOT_TERNARY_DEFINE_FUSED(PortableFused, , activation_body::Activate)

#define TFMOT_TERNARY_FUSED(name, functions, flags) extern const FusedFunctions functions;
#include "custom_ops/kernels/fused.inc"

namespace {

constexpr FusedKernel kFusedKernels[] = {
#define TFMOT_TERNARY_FUSED(name, functions, flags) {name, flags, &functions},
#include "custom_ops/kernels/fused.inc"
};

constexpr const char* kActivationKindTokens[] = {"gelu", "gelu_tanh", "silu"};
constexpr const char* kPairLayoutTokens[] = {"halves", "pairs"};

// The index of the token, or -1.
template <int count>
int Find(const char* const (&tokens)[count], const char* token) {
  for (int i = 0; token != nullptr && i < count; ++i) {
    if (std::strcmp(tokens[i], token) == 0) return i;
  }
  return -1;
}

}  // namespace

bool ParseActivationKind(const char* token, ActivationKind* kind) {
  const int i = Find(kActivationKindTokens, token);
  if (i >= 0) *kind = static_cast<ActivationKind>(i);
  return i >= 0;
}

bool ParsePairLayout(const char* token, PairLayout* layout) {
  const int i = Find(kPairLayoutTokens, token);
  if (i >= 0) *layout = static_cast<PairLayout>(i);
  return i >= 0;
}

const FusedKernel* FusedKernels(int* count) {
  *count = sizeof(kFusedKernels) / sizeof(kFusedKernels[0]);
  return kFusedKernels;
}

const FusedFunctions* SelectFused(CpuFlags flags) {
  for (const FusedKernel& kernel : kFusedKernels) {
    if ((flags & kernel.cpu) == kernel.cpu) return kernel.functions;
  }
  return nullptr;  // not reached: the portable line fits every CPU
}

}  // namespace tfmot_ternary
