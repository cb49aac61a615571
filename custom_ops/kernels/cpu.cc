#include "custom_ops/kernels/cpu.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#if defined(__x86_64__)
#include <sys/syscall.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif
#elif defined(__APPLE__) && defined(__aarch64__)
#include <sys/sysctl.h>
#endif

namespace tfmot_ternary {
namespace {

struct Level {
  const char* name;
  CpuFlags flags;
};

// No CPU has kCpuAvx512Bw and kCpuAvxVnni without kCpuAvx512Vnni.
constexpr Level kLevels[] = {
    {"portable", kCpuPortable},
    {"avx2", kCpuAvx2 | kCpuFma},
    {"avxvnni", kCpuAvx2 | kCpuFma | kCpuAvxVnni},
    {"avx512bw", kCpuAvx2 | kCpuFma | kCpuAvx512Bw},
    {"avx512vnni",
     kCpuAvx2 | kCpuFma | kCpuAvxVnni | kCpuAvx512Bw | kCpuAvx512Vnni | kCpuAvx512Vbmi},
    {"neon", kCpuNeon},
    {"dotprod", kCpuNeon | kCpuDotProd},
};

#if defined(__x86_64__)
// Registers that the system saves (XCR0).
uint64_t SavedRegisters() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux gives the 8 KiB of tile registers to processes that ask
// (Documentation/arch/x86/xstate.rst); it refuses where a signal stack is too small for them.
bool AskForTiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

CpuFlags HostCpu() {
  CpuFlags flags = kCpuPortable;
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return flags;
  const bool has_xgetbv = (c & (1u << 27)) != 0;
  const bool fma_f16c = (c & (1u << 12)) != 0 && (c & (1u << 29)) != 0;
  if (!has_xgetbv) return flags;
  const uint64_t saved = SavedRegisters();
  constexpr uint64_t kYmm = 0x06;      // xmm and the upper halves of ymm
  constexpr uint64_t kZmm = 0xe6;      // and masks, upper halves of zmm, zmm16 to zmm31
  constexpr uint64_t kTile = 0x60000;  // tile configuration and data
  const auto has = [](uint32_t reg, int bit) { return ((reg >> bit) & 1) != 0; };
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return flags;
  if ((saved & kYmm) == kYmm && has(b, 5)) flags |= fma_f16c ? kCpuAvx2 | kCpuFma : kCpuAvx2;
  const bool f_dq_bw_vl = has(b, 16) && has(b, 17) && has(b, 30) && has(b, 31);
  if ((saved & kZmm) == kZmm && f_dq_bw_vl) {
    flags |= kCpuAvx512Bw;
    if (has(c, 11)) flags |= kCpuAvx512Vnni;
    if (has(c, 1)) flags |= kCpuAvx512Vbmi;
  }
  const bool tiles = (saved & kTile) == kTile && has(d, 24) && has(d, 25);
  const bool gfni = has(c, 8);
  if (tiles && gfni && (flags & kCpuAvx512Vnni) != 0 && AskForTiles()) flags |= kCpuAmxInt8;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && has(a, 4) && (flags & kCpuAvx2) != 0) {
    flags |= kCpuAvxVnni;
  }
#elif defined(__aarch64__)
  flags |= kCpuNeon;
#if defined(__linux__)
  // The bits of asm/hwcap.h, which older headers lack.
  constexpr unsigned long kHwcapDotProd = 1ul << 20;
  constexpr unsigned long kHwcap2I8mm = 1ul << 13;
  if ((getauxval(AT_HWCAP) & kHwcapDotProd) != 0) {
    flags |= kCpuDotProd;
    if ((getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0) flags |= kCpuI8mm;
  }
#elif defined(__APPLE__)
  const auto has = [](const char* name) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  if (has("hw.optional.arm.FEAT_DotProd")) {
    flags |= kCpuDotProd;
    if (has("hw.optional.arm.FEAT_I8MM")) flags |= kCpuI8mm;
  }
#endif
#endif
  return flags;
}

CpuFlags NarrowCpu(CpuFlags flags, const char* level) {
  if (level == nullptr) return flags;
  for (const Level& known : kLevels) {
    if (std::strcmp(level, known.name) == 0) return flags & known.flags;
  }
  return flags;  // "amx" and "i8mm" are the highest levels
}

CpuFlags DetectCpu() { return NarrowCpu(HostCpu(), std::getenv("TFMOT_TERNARY_CPU")); }

}  // namespace tfmot_ternary
