#include "custom_ops/kernels/cpu.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tfmot_ternary {
namespace {

#if defined(__x86_64__)
// Registers that the system saves (XCR0).
uint64_t SavedRegisters() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}
#endif

}  // namespace

CpuFlags HostCpu() {
  CpuFlags flags = kCpuPortable;
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return flags;
  const bool has_xgetbv = (c & (1u << 27)) != 0;
  if (!has_xgetbv) return flags;
  const uint64_t saved = SavedRegisters();
  constexpr uint64_t kYmm = 0x06;  // xmm and the upper halves of ymm
  constexpr uint64_t kZmm = 0xe6;  // and masks, upper halves of zmm, zmm16 to zmm31
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return flags;
  const auto has = [](uint32_t reg, int bit) { return ((reg >> bit) & 1) != 0; };
  if ((saved & kYmm) == kYmm && has(b, 5)) flags |= kCpuAvx2;
  const bool f_dq_bw_vl = has(b, 16) && has(b, 17) && has(b, 30) && has(b, 31);
  if ((saved & kZmm) == kZmm && f_dq_bw_vl && has(c, 11)) {
    flags |= kCpuAvx512Vnni;
    if (has(c, 1)) flags |= kCpuAvx512Vbmi;
  }
#endif
  return flags;
}

CpuFlags NarrowCpu(CpuFlags flags, const char* level) {
  if (level == nullptr) return flags;
  if (std::strcmp(level, "portable") == 0) return kCpuPortable;
  if (std::strcmp(level, "avx2") == 0) return flags & kCpuAvx2;
  return flags;  // "avx512vnni" is the highest level
}

CpuFlags DetectCpu() { return NarrowCpu(HostCpu(), std::getenv("TFMOT_TERNARY_CPU")); }

}  // namespace tfmot_ternary
