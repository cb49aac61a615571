// The choice of kernels: a pure function of the flags, best first, portable last.
#include "custom_ops/kernels/kernels.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/row.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

constexpr CpuFlags kAll = kCpuAvx2 | kCpuAvxVnni | kCpuAvx512Bw | kCpuAvx512Vnni | kCpuAvx512Vbmi;

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void CheckChoice(CpuFlags flags, Format format, const std::string& suffix,
                 const std::string& row_suffix) {
  const Kernels kernels = SelectKernels(flags, format);
  const std::string token = FormatToken(format);
  CHECK_TRUE(kernels.format == format, token);
  CHECK_TRUE(kernels.decode->format == format && kernels.prefill->format == format, token);
  CHECK_TRUE(kernels.unpack->format == format, token);
  for (const char* name : {kernels.decode->name, kernels.prefill->name}) {
    CHECK_TRUE(EndsWith(name, suffix), std::string(name) + ", flags " + std::to_string(flags));
  }
  CHECK_TRUE(EndsWith(kernels.unpack->name, row_suffix), kernels.unpack->name);
  CHECK_EQUAL(kernels.decode->min_m, 1, kernels.decode->name);
  CHECK_TRUE(kernels.prefill->min_m >= kernels.decode->min_m, kernels.prefill->name);
}

void CheckChoices() {
  for (Format format : kFormats) {
    CheckChoice(kCpuPortable, format, "portable", "portable");
#if defined(__x86_64__)
    CheckChoice(kCpuAvx2, format, "avx2", "avx2");
    CheckChoice(kAll, format, "avx512vnni", "avx512");
    // Without VBMI, t5 falls back; the other formats do not need it.
    const bool t5 = format == Format::kT5;
    CheckChoice(kCpuAvx2 | kCpuAvx512Bw | kCpuAvx512Vnni, format, t5 ? "avx2" : "avx512vnni",
                t5 ? "avx2" : "avx512");
#endif
  }
}

void CheckNarrowing() {
  CHECK_EQUAL(NarrowCpu(kAll, "portable"), static_cast<CpuFlags>(kCpuPortable), "portable");
  CHECK_EQUAL(NarrowCpu(kAll, "avx2"), static_cast<CpuFlags>(kCpuAvx2), "avx2");
  CHECK_EQUAL(NarrowCpu(kCpuPortable, "avx2"), static_cast<CpuFlags>(kCpuPortable), "no more");
  for (const char* level : {"avx512vnni", "", "AVX2", "neon"}) {
    CHECK_EQUAL(NarrowCpu(kAll, level), kAll, level);
  }
  CHECK_EQUAL(NarrowCpu(kAll, nullptr), kAll, "null");
  setenv("TFMOT_TERNARY_CPU", "portable", 1);
  CHECK_EQUAL(DetectCpu(), static_cast<CpuFlags>(kCpuPortable), "environment");
  unsetenv("TFMOT_TERNARY_CPU");
  CHECK_EQUAL(DetectCpu(), HostCpu(), "environment");
}

// Every line of the table needs what its name says, and can be reached by some flags.
void CheckTable() {
  int count;
  const GemmKernel* table = GemmKernels(&count);
  for (int i = 0; i < count; ++i) {
    const Kernels kernels = SelectKernels(table[i].cpu, table[i].format);
    CHECK_TRUE(kernels.decode == &table[i] || kernels.prefill == &table[i], table[i].name);
    CHECK_TRUE(table[i].functions->block_m >= 1, table[i].name);
    std::printf("%-24s flags %u, from %lld rows of x%s\n", table[i].name, table[i].cpu,
                static_cast<long long>(table[i].min_m),
                (HostCpu() & table[i].cpu) == table[i].cpu ? "" : " (not on this CPU)");
  }
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::CheckChoices();
  tfmot_ternary::CheckNarrowing();
  tfmot_ternary::CheckTable();
  return tfmot_ternary::Finish("kernels_test");
}
