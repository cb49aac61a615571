// What the CPU can do, as flags.
#ifndef TFMOT_TERNARY_KERNELS_CPU_H_
#define TFMOT_TERNARY_KERNELS_CPU_H_

#include <cstdint>

namespace tfmot_ternary {

// Bits of CpuFlags. A flag is set when the CPU has the instructions and the system saves the
// registers they need.
enum CpuFlag : uint32_t {
  kCpuPortable = 0,  // what every kernel may use

  kCpuAvx2 = 1u << 0,        // AVX2
  kCpuAvxVnni = 1u << 1,     // AVX-VNNI: vpdpbusd on ymm without AVX-512
  kCpuAvx512Bw = 1u << 2,    // AVX-512 F, BW, DQ, VL
  kCpuAvx512Vnni = 1u << 3,  // AVX-512 VNNI, never without kCpuAvx512Bw
  kCpuAvx512Vbmi = 1u << 4,  // AVX-512 VBMI, never without kCpuAvx512Bw
  kCpuAmxInt8 = 1u << 5,     // AMX-TILE and AMX-INT8, and the system lets this process use them;
                             // GFNI too, and never without kCpuAvx512Vnni
  kCpuFma = 1u << 6,         // FMA and F16C, never without kCpuAvx2: of every such CPU but VIA's

  kCpuNeon = 1u << 16,     // Advanced SIMD: every ARM64 CPU
  kCpuDotProd = 1u << 17,  // SDOT, UDOT
  kCpuI8mm = 1u << 18,     // SMMLA, USMMLA, USDOT
};
using CpuFlags = uint32_t;

// The flags of this CPU, narrowed by the environment variable TFMOT_TERNARY_CPU to a level:
// "portable", then on x86-64 "avx2", "avxvnni", "avx512bw", "avx512vnni", "amx", on ARM64 "neon",
// "dotprod", "i8mm". Each means at most that; unset, empty or unknown mean no limit.
// Reads CPUID (on Linux asks the kernel for the AMX tiles too) and the environment: call it once,
// in Prepare, and keep the result.
CpuFlags DetectCpu();

// The same without the environment.
CpuFlags HostCpu();

// flags without what `level` excludes; null, empty and unknown levels exclude nothing.
CpuFlags NarrowCpu(CpuFlags flags, const char* level);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_CPU_H_
