// What the tests run on: the CPU, its levels, and the record of the kernels that ran.
#ifndef TFMOT_TERNARY_KERNELS_TEST_CPU_H_
#define TFMOT_TERNARY_KERNELS_TEST_CPU_H_

#include <cstdint>
#include <cstdio>
#include <string>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/cpu.h"
#include "custom_ops/kernels/kernels.h"

namespace tfmot_ternary {

// The CPU's flags, and those whose instructions this build does in software.
inline CpuFlags TestCpu() {
  CpuFlags flags = HostCpu();
#if defined(TFMOT_TERNARY_MODEL_AMX)
  // What the kernels with tiles use beside them, and comes with kCpuAmxInt8.
  constexpr CpuFlags kBeside = kCpuAvx512Vnni | kCpuAvx512Vbmi;
  if ((flags & kBeside) == kBeside && __builtin_cpu_supports("gfni")) flags |= kCpuAmxInt8;
#endif
  return flags;
}

inline bool Supported(CpuFlags needed) { return (TestCpu() & needed) == needed; }

// The levels of this architecture, highest first. One that the CPU lacks narrows nothing.
#if defined(__x86_64__)
constexpr const char* kCpuLevels[] = {"amx",     "avx512vnni", "avx512bw",
                                      "avxvnni", "avx2",       "portable"};
#elif defined(__aarch64__)
constexpr const char* kCpuLevels[] = {"i8mm", "dotprod", "neon", "portable"};
#else
constexpr const char* kCpuLevels[] = {"portable"};
#endif

inline Kernels KernelsAt(const char* level, Format format) {
  return SelectKernels(NarrowCpu(TestCpu(), level), format);
}

// Says that a kernel of the table ran, or that it could not. custom_ops/kernel_coverage.py reads
// these lines from the logs of all test runs. One that the CPU has and that did not run is a
// failure.
inline void RecordKernel(const char* name, CpuFlags cpu, int64_t comparisons) {
  if (Supported(cpu)) {
    std::printf("kernel %s: %lld comparisons\n", name, static_cast<long long>(comparisons));
  } else {
    std::printf("kernel %s: not on this CPU\n", name);
  }
  CHECK_EQUAL(comparisons > 0, Supported(cpu), name);
}

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_TEST_CPU_H_
