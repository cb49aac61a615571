#include "benchmarks/dot_peak.h"

#include <cstdint>
#include <cstring>

#include "benchmarks/rate.h"
#include "custom_ops/kernels/cpu.h"

namespace tfmot_ternary {
namespace {

// Dot products. Sums of registers that nobody reads: more chains than latency times ports.

constexpr int kDotLoops = 1000;

struct DotKind {
  const char* name;
  CpuFlags cpu;
  double operations;  // of one loop
  void (*run)();
};

#if defined(__x86_64__)
#define TFMOT_CHAINS_16(f) \
  f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15) f(16) f(17) f(18) f(19) f(20) f(21) f(22) f(23)
#define TFMOT_CHAINS_12(f) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define TFMOT_CLOBBER_YMM                                                                  \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define TFMOT_CLOBBER_ZMM \
  TFMOT_CLOBBER_YMM, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23"

__attribute__((target("avx512f,avx512bw,avx512vnni"))) void DotAvx512Vnni() {
#define TFMOT_DOT(r) "vpdpbusd %%zmm1, %%zmm2, %%zmm" #r "\n"
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(TFMOT_CHAINS_16(TFMOT_DOT)::: TFMOT_CLOBBER_ZMM);
  }
#undef TFMOT_DOT
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) void DotAvx512VnniAnd() {
#define TFMOT_DOT(r) "vpandd %%zmm1, %%zmm2, %%zmm3\n vpdpbusd %%zmm4, %%zmm3, %%zmm" #r "\n"
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(TFMOT_CHAINS_16(TFMOT_DOT)::: TFMOT_CLOBBER_ZMM);
  }
#undef TFMOT_DOT
}

__attribute__((target("avx2"))) void DotAvxVnni() {
#define TFMOT_DOT(r) "%{vex%} vpdpbusd %%ymm1, %%ymm2, %%ymm" #r "\n"
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(TFMOT_CHAINS_12(TFMOT_DOT)::: TFMOT_CLOBBER_YMM);
  }
#undef TFMOT_DOT
}

// Pairs summed to 16 bits; widening those sums is left out, as a kernel does it rarely.
__attribute__((target("avx2"))) void DotAvx2() {
#define TFMOT_DOT(r)                    \
  "vpmaddubsw %%ymm1, %%ymm2, %%ymm3\n" \
  "vpaddw %%ymm3, %%ymm" #r ", %%ymm" #r "\n"
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(TFMOT_CHAINS_12(TFMOT_DOT)::: TFMOT_CLOBBER_YMM);
  }
#undef TFMOT_DOT
}

// All eight tiles 16 rows of 64 bytes: palette, rows and bytes as LDTILECFG reads them.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void DotAmx() {
  const TileConfig config;
  asm volatile(
      "ldtilecfg %0\n tilezero %%tmm4\n tilezero %%tmm5\n tilezero %%tmm6\n"
      "tilezero %%tmm7\n" ::"m"(config));
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(
        "tdpbusd %tmm6, %tmm4, %tmm0\n tdpbusd %tmm7, %tmm4, %tmm1\n"
        "tdpbusd %tmm6, %tmm5, %tmm2\n tdpbusd %tmm7, %tmm5, %tmm3\n");
  }
  asm volatile("tilerelease");
}
#elif defined(__aarch64__)
#define TFMOT_CHAINS_16(f) \
  f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15) f(16) f(17) f(18) f(19) f(20) f(21) f(22) f(23)
#define TFMOT_CLOBBER_NEON                                                                    \
  "v0", "v1", "v2", "v3", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", \
      "v18", "v19", "v20", "v21", "v22", "v23"

void DotNeon() {
#define TFMOT_DOT(r)               \
  "smull v3.8h, v1.8b, v2.8b\n"    \
  "smlal2 v3.8h, v1.16b, v2.16b\n" \
  "sadalp v" #r ".4s, v3.8h\n"
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(TFMOT_CHAINS_16(TFMOT_DOT)::: TFMOT_CLOBBER_NEON);
  }
#undef TFMOT_DOT
}

__attribute__((target("arch=armv8.2-a+dotprod"))) void DotDotProd() {
#define TFMOT_DOT(r) "sdot v" #r ".4s, v1.16b, v2.16b\n"
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(TFMOT_CHAINS_16(TFMOT_DOT)::: TFMOT_CLOBBER_NEON);
  }
#undef TFMOT_DOT
}

__attribute__((target("arch=armv8.2-a+i8mm"))) void DotI8mm() {
#define TFMOT_DOT(r) "smmla v" #r ".4s, v1.16b, v2.16b\n"
  for (int i = 0; i < kDotLoops; ++i) {
    asm volatile(TFMOT_CHAINS_16(TFMOT_DOT)::: TFMOT_CLOBBER_NEON);
  }
#undef TFMOT_DOT
}
#endif

constexpr DotKind kDotKinds[] = {
#if defined(__x86_64__)
    {"amx", kCpuAmxInt8, 2.0 * 4 * 16 * 16 * 64, DotAmx},
    {"avx512vnni", kCpuAvx512Vnni, 2.0 * 16 * 64, DotAvx512Vnni},
    {"avx512vnni_and", kCpuAvx512Vnni, 2.0 * 16 * 64, DotAvx512VnniAnd},
    {"avxvnni", kCpuAvxVnni, 2.0 * 12 * 32, DotAvxVnni},
    {"avx2", kCpuAvx2, 2.0 * 12 * 32, DotAvx2},
#elif defined(__aarch64__)
    {"i8mm", kCpuI8mm, 2.0 * 16 * 32, DotI8mm},
    {"dotprod", kCpuDotProd, 2.0 * 16 * 16, DotDotProd},
    {"neon", kCpuNeon, 2.0 * 16 * 16, DotNeon},
#endif
    {"", ~0u, 0, nullptr},  // so that the table is never empty
};

const DotKind* FindDot(const char* name) {
  for (const DotKind& kind : kDotKinds) {
    const bool supported = (HostCpu() & kind.cpu) == kind.cpu && kind.run != nullptr;
    if (std::strcmp(kind.name, name) == 0 && supported) return &kind;
  }
  return nullptr;
}

}  // namespace

double DotGops(const char* kind, int threads, double seconds) {
  const DotKind* dot = FindDot(kind);
  if (dot == nullptr) return -1;
  return 1e-9 * Rate(threads, seconds, kDotLoops * dot->operations, [&](int) { dot->run(); });
}

}  // namespace tfmot_ternary
