// The choice of kernels: a pure function of the flags, best first, portable last.
#include "custom_ops/kernels/kernels.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/float_kernel.h"
#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/row.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

constexpr CpuFlags kX86[] = {kCpuAvx2,       kCpuAvxVnni,    kCpuAvx512Bw,
                             kCpuAvx512Vnni, kCpuAvx512Vbmi, kCpuAmxInt8};
constexpr CpuFlags kArm[] = {kCpuNeon, kCpuDotProd, kCpuI8mm};

// All flags of both architectures: a level leaves those that it names, whatever the host is.
CpuFlags AllFlags() {
  CpuFlags all = kCpuPortable;
  for (CpuFlags flag : kX86) all |= flag;
  for (CpuFlags flag : kArm) all |= flag;
  return all;
}

bool Has(CpuFlags flags, CpuFlags needed) { return (flags & needed) == needed; }

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// The lowest level that has all the flags.
std::string LevelOf(CpuFlags needed) {
  std::string lowest;
  for (const char* level : kCpuLevels) {
    if (Has(NarrowCpu(AllFlags(), level), needed)) lowest = level;
  }
  return lowest;
}

void CheckNarrowing() {
  struct Level {
    const char* name;
    CpuFlags flags;
  };
  constexpr CpuFlags kVnni =
      kCpuAvx2 | kCpuAvxVnni | kCpuAvx512Bw | kCpuAvx512Vnni | kCpuAvx512Vbmi;
  const CpuFlags all = AllFlags();
  const Level levels[] = {{"portable", kCpuPortable},
                          {"avx2", kCpuAvx2},
                          {"avxvnni", kCpuAvx2 | kCpuAvxVnni},
                          {"avx512bw", kCpuAvx2 | kCpuAvx512Bw},
                          {"avx512vnni", kVnni},
                          {"amx", all},
                          {"neon", kCpuNeon},
                          {"dotprod", kCpuNeon | kCpuDotProd},
                          {"i8mm", all},
                          // Unknown, or none.
                          {"", all},
                          {"AVX2", all},
                          {"sse2", all},
                          {nullptr, all}};
  for (const Level& level : levels) {
    const std::string context = level.name == nullptr ? "null" : level.name;
    CHECK_EQUAL(NarrowCpu(all, level.name), level.flags, context);
    CHECK_EQUAL(NarrowCpu(kCpuPortable, level.name), CpuFlags{kCpuPortable}, context);
    CHECK_EQUAL(NarrowCpu(kCpuAvx2 | kCpuNeon, level.name), level.flags & (kCpuAvx2 | kCpuNeon),
                context);
  }
  setenv("TFMOT_TERNARY_CPU", "portable", 1);
  CHECK_EQUAL(DetectCpu(), CpuFlags{kCpuPortable}, "environment");
  unsetenv("TFMOT_TERNARY_CPU");
  CHECK_EQUAL(DetectCpu(), HostCpu(), "environment");
}

// Whatever the flags, the kernels need no others.
void CheckEverySubset() {
  for (CpuFlags bits = 0; bits < 1u << 9; ++bits) {
    CpuFlags flags = kCpuPortable;
    for (int i = 0; i < 6; ++i) flags |= (bits >> i & 1) != 0 ? kX86[i] : kCpuPortable;
    for (int i = 0; i < 3; ++i) flags |= (bits >> (6 + i) & 1) != 0 ? kArm[i] : kCpuPortable;
    const std::string context = "flags " + std::to_string(flags);
    for (Format format : kFormats) {
      const Kernels kernels = SelectKernels(flags, format);
      CHECK_TRUE(kernels.format == format && kernels.decode->format == format &&
                     kernels.prefill->format == format && kernels.unpack->format == format,
                 context);
      for (CpuFlags needed :
           {kernels.decode->cpu, kernels.prefill->cpu, kernels.unpack->cpu, kernels.row->cpu}) {
        CHECK_TRUE(Has(flags, needed), context + ", a kernel needs " + std::to_string(needed));
      }
      if (kernels.floats != nullptr) {
        CHECK_TRUE(kernels.floats->format == format, context);
        CHECK_TRUE(Has(flags, kernels.floats->cpu), context + ", " + kernels.floats->name);
      }
      CHECK_EQUAL(kernels.decode->min_m, 1, kernels.decode->name);
      CHECK_TRUE(kernels.prefill == kernels.decode || kernels.prefill->min_m > 1,
                 kernels.prefill->name);
    }
  }
}

// Each level has a kernel of its own for each format, and the table's lines are named after the
// lowest level that runs them.
void CheckLevels() {
  for (const char* level : kCpuLevels) {
    for (Format format : kFormats) {
      const Kernels kernels = SelectKernels(NarrowCpu(AllFlags(), level), format);
      const std::string context = std::string(FormatToken(format)) + " at " + level + ": decode " +
                                  kernels.decode->name + ", prefill " + kernels.prefill->name;
      std::printf("%s, unpack %s, row %s\n", context.c_str(), kernels.unpack->name,
                  kernels.row->name);
      CHECK_TRUE(LevelOf(kernels.decode->cpu) == level || LevelOf(kernels.prefill->cpu) == level,
                 context);
    }
  }
}

// Every line of the table can be reached by some flags, and says what it needs.
void CheckTable() {
  int count;
  const GemmKernel* table = GemmKernels(&count);
  for (int i = 0; i < count; ++i) {
    const std::string name = table[i].name;
    const Kernels kernels = SelectKernels(table[i].cpu, table[i].format);
    CHECK_TRUE(kernels.decode == &table[i] || kernels.prefill == &table[i], name);
    CHECK_TRUE(table[i].functions->block_m >= 1, name);
    CHECK_TRUE(name.compare(0, 3, std::string(FormatToken(table[i].format)) + "_") == 0, name);
    CHECK_TRUE(EndsWith(name, "_" + LevelOf(table[i].cpu)), name);
  }
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::CheckNarrowing();
  tfmot_ternary::CheckEverySubset();
  tfmot_ternary::CheckLevels();
  tfmot_ternary::CheckTable();
  return tfmot_ternary::Finish("kernels_test");
}
