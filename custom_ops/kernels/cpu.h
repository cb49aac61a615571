// What the CPU can do, as flags.
#ifndef TFMOT_TERNARY_KERNELS_CPU_H_
#define TFMOT_TERNARY_KERNELS_CPU_H_

#include <cstdint>

namespace tfmot_ternary {

// Bits of CpuFlags. A flag is set when the CPU has the instructions and the system saves the
// registers they need.
enum CpuFlag : uint32_t {
  kCpuPortable = 0,          // what every kernel may use
  kCpuAvx2 = 1u << 0,        // AVX2
  kCpuAvx512Vnni = 1u << 1,  // AVX-512 F, BW, DQ, VL, VNNI
  kCpuAvx512Vbmi = 1u << 2,  // AVX-512 VBMI
};
using CpuFlags = uint32_t;

// The flags of this CPU, narrowed by the environment variable TFMOT_TERNARY_CPU: "portable",
// "avx2" or "avx512vnni" mean at most that; unset, empty or unknown mean no limit.
// Reads CPUID and the environment: call it once, in Prepare, and keep the result.
CpuFlags DetectCpu();

// The same without the environment.
CpuFlags HostCpu();

// flags without what `level` excludes; null, empty and unknown levels exclude nothing.
CpuFlags NarrowCpu(CpuFlags flags, const char* level);

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_CPU_H_
