// The physical limits of this machine: read bandwidth, int8 dot products, thread hand-off.
//
// Answers one request a line on standard input with one line on standard output:
//
//   read PAGES BYTES THREADS MS  GB/s of reading BYTES (whole MiB) over and over, a share for each
//                                thread; PAGES are "huge", or "small" as a mapped file has them
//   free                         gives the memory of reads back
//   dot KIND THREADS MS          GOPS, 2 for each multiply-accumulate; "unsupported"
//   handoff MS                   microseconds from one thread's store to another one's load
//
// Kinds, of which each CPU has some: amx, avx512vnni, avx512vnni_and (one vpand for each dot, what
// unpacking fields costs), avxvnni, avx2, i8mm, dotprod, neon.
//
//   echo "dot avx512vnni 1 100" | machine_limits
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "custom_ops/kernels/cpu.h"

namespace tfmot_ternary {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point from) {
  return std::chrono::duration<double>(Clock::now() - from).count();
}

// Runs work(thread) in each of `threads` threads until `seconds` are over and returns what it
// counted per second, all threads together. Each call of `work` counts `per_call`.
template <typename Work>
double Rate(int threads, double seconds, double per_call, const Work& work) {
  std::atomic<int> ready{0};
  std::vector<double> rates(static_cast<size_t>(threads));
  const auto run = [&](int thread) {
    work(thread);  // faults pages in, wakes the wide units
    ++ready;
    while (ready.load() < threads) {
    }
    const Clock::time_point start = Clock::now();
    int64_t calls = 0;
    double elapsed = 0;
    do {
      work(thread);
      ++calls;
      elapsed = Seconds(start);
    } while (elapsed < seconds);
    rates[static_cast<size_t>(thread)] = static_cast<double>(calls) * per_call / elapsed;
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  double sum = 0;
  for (double rate : rates) sum += rate;
  return sum;
}

// Reading. A function reads one piece of kPiece bytes, as four streams from caches. From memory it
// reads eight and asks a little ahead: what the CPU fetches by itself stops at the end of a page.

constexpr int64_t kPiece = 1 << 20;
constexpr int kCacheStreams = 4;
constexpr int kMemoryStreams = 8;
constexpr int64_t kAhead = 512;

uint64_t g_sink;  // what portable loads add up to

template <bool kFromMemory>
void ReadPortable(const uint8_t* data) {
  const uint64_t* words = reinterpret_cast<const uint64_t*>(data);
  uint64_t sums[8] = {};
  for (int64_t i = 0; i < kPiece / 8; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
  }
  for (uint64_t sum : sums) reinterpret_cast<volatile uint64_t&>(g_sink) = sum;
}

// Volatile asm: a load that nobody uses stays.
#if defined(__x86_64__)
template <bool kFromMemory>
__attribute__((target("avx2"))) void ReadAvx2(const uint8_t* data) {
  constexpr int64_t kStream = kPiece / (kFromMemory ? kMemoryStreams : kCacheStreams);
  for (int64_t i = 0; i < kStream; i += 256) {
    for (const uint8_t* from = data + i; from < data + kPiece; from += kStream) {
      for (int64_t j = 0; j < 256; j += 64) {
        if (kFromMemory) asm volatile("prefetcht0 (%0)" ::"r"(from + j + kAhead));
        asm volatile("vmovdqa (%0), %%ymm0\n vmovdqa 32(%0), %%ymm1" ::"r"(from + j)
                     : "xmm0", "xmm1", "memory");
      }
    }
  }
}

template <bool kFromMemory>
__attribute__((target("avx512f"))) void ReadAvx512(const uint8_t* data) {
  constexpr int64_t kStream = kPiece / (kFromMemory ? kMemoryStreams : kCacheStreams);
  for (int64_t i = 0; i < kStream; i += 256) {
    for (const uint8_t* from = data + i; from < data + kPiece; from += kStream) {
      for (int64_t j = 0; j < 256; j += 64) {
        if (kFromMemory) asm volatile("prefetcht0 (%0)" ::"r"(from + j + kAhead));
        asm volatile("vmovdqa64 (%0), %%zmm0" ::"r"(from + j) : "xmm0", "memory");
      }
    }
  }
}
#elif defined(__aarch64__)
template <bool kFromMemory>
void ReadNeon(const uint8_t* data) {
  constexpr int64_t kStream = kPiece / (kFromMemory ? kMemoryStreams : kCacheStreams);
  for (int64_t i = 0; i < kStream; i += 256) {
    for (const uint8_t* from = data + i; from < data + kPiece; from += kStream) {
      for (int64_t j = 0; j < 256; j += 64) {
        if (kFromMemory) asm volatile("prfm pldl1keep, [%0]" ::"r"(from + j + kAhead));
        asm volatile("ldp q0, q1, [%0]\n ldp q2, q3, [%0, #32]" ::"r"(from + j)
                     : "v0", "v1", "v2", "v3", "memory");
      }
    }
  }
}
#endif

using ReadFunction = void (*)(const uint8_t*);

template <bool kFromMemory>
ReadFunction Reader(CpuFlags cpu) {
#if defined(__x86_64__)
  if ((cpu & kCpuAvx512Bw) != 0) return ReadAvx512<kFromMemory>;
  if ((cpu & kCpuAvx2) != 0) return ReadAvx2<kFromMemory>;
#elif defined(__aarch64__)
  if ((cpu & kCpuNeon) != 0) return ReadNeon<kFromMemory>;
#endif
  (void)cpu;
  return ReadPortable<kFromMemory>;
}

// What a share must exceed to come from memory: the caches near a core are smaller.
constexpr int64_t kLargestCachedShare = 32 << 20;

// Memory that the reads walk over: kept from request to request, because to fill gigabytes takes
// longer than to read them. The walk goes on where the last request of this size has left it, so
// that short requests see all of the memory.
class Walk {
 public:
  explicit Walk(bool huge_pages) : huge_pages_(huge_pages) {}
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;
  ~Walk() { std::free(data_); }

  // 0 where the memory is missing.
  double Gigabytes(int64_t bytes, int threads, double seconds) {
    const int64_t pieces = std::max<int64_t>(1, bytes / threads / kPiece);
    if (!Fill(pieces * threads * kPiece)) return 0;
    if (static_cast<int>(places_.size()) != threads) places_.assign(threads, Place());
    const bool from_memory = pieces * kPiece > kLargestCachedShare;
    const ReadFunction read = from_memory ? Reader<true>(HostCpu()) : Reader<false>(HostCpu());
    return 1e-9 * Rate(threads, seconds, static_cast<double>(kPiece), [&](int thread) {
             int64_t* piece = &places_[static_cast<size_t>(thread)].piece;
             *piece = (*piece + 1) % pieces;
             read(data_ + (thread * pieces + *piece) * kPiece);
           });
  }

 private:
  static constexpr int64_t kHugePage = 1 << 21;
  struct alignas(64) Place {
    int64_t piece = 0;
  };

  bool Fill(int64_t bytes) {
    if (bytes <= size_) return true;
    std::free(data_);
    const size_t rounded =
        static_cast<size_t>((bytes + kAhead + kHugePage) / kHugePage * kHugePage);
    data_ = static_cast<uint8_t*>(std::aligned_alloc(kHugePage, rounded));
    size_ = data_ == nullptr ? 0 : bytes;
    if (data_ == nullptr) return false;
#if defined(__linux__)
    madvise(data_, rounded, huge_pages_ ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
    std::memset(data_, 1, rounded);
    return true;
  }

  bool huge_pages_;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  std::vector<Place> places_;
};

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

// Half of a there and back.
double HandoffMicroseconds(double seconds) {
  alignas(64) std::atomic<int64_t> there{0};
  alignas(64) std::atomic<int64_t> back{0};
  std::thread other([&] {
    for (int64_t turn = 1;; ++turn) {
      int64_t seen;
      while ((seen = there.load(std::memory_order_acquire)) < turn) {
        if (seen < 0) return;
      }
      back.store(turn, std::memory_order_release);
    }
  });
  const Clock::time_point start = Clock::now();
  int64_t turns = 0;
  while (Seconds(start) < seconds) {
    there.store(++turns, std::memory_order_release);
    while (back.load(std::memory_order_acquire) < turns) {
    }
  }
  const double elapsed = Seconds(start);
  there.store(-1, std::memory_order_release);
  other.join();
  return elapsed / static_cast<double>(turns) / 2 * 1e6;
}

int Serve() {
  std::unique_ptr<Walk> walks[2];
  char line[256];
  while (std::fgets(line, sizeof(line), stdin) != nullptr) {
    long long bytes = 0;
    int threads = 0;
    double ms = 0;
    char name[32] = "";
    if (std::sscanf(line, "read %31s %lld %d %lf", name, &bytes, &threads, &ms) == 4 &&
        threads >= 1) {
      const bool huge = std::strcmp(name, "huge") == 0;
      if (walks[huge] == nullptr) walks[huge] = std::make_unique<Walk>(huge);
      std::printf("%.6g\n", walks[huge]->Gigabytes(bytes, threads, ms * 1e-3));
    } else if (std::strcmp(line, "free\n") == 0) {
      walks[0].reset();
      walks[1].reset();
      std::printf("0\n");
    } else if (std::sscanf(line, "dot %31s %d %lf", name, &threads, &ms) == 3 && threads >= 1) {
      const DotKind* kind = FindDot(name);
      if (kind == nullptr) {
        std::printf("unsupported\n");
      } else {
        std::printf("%.6g\n", 1e-9 * Rate(threads, ms * 1e-3, kDotLoops * kind->operations,
                                          [&](int) { kind->run(); }));
      }
    } else if (std::sscanf(line, "handoff %lf", &ms) == 1) {
      std::printf("%.6g\n", HandoffMicroseconds(ms * 1e-3));
    } else {
      std::fprintf(stderr, "expected read, dot or handoff with their numbers, got: %s", line);
      return 2;
    }
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace tfmot_ternary

int main() { return tfmot_ternary::Serve(); }
