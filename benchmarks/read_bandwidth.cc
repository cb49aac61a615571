#include "benchmarks/read_bandwidth.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "benchmarks/rate.h"
#include "custom_ops/kernels/cpu.h"

namespace tfmot_ternary {
namespace {

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

constexpr int64_t kHugePage = 1 << 21;

}  // namespace

Walk::~Walk() { std::free(data_); }

double Walk::Gigabytes(int64_t bytes, int threads, double seconds) {
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

bool Walk::Fill(int64_t bytes) {
  if (bytes <= size_) return true;
  std::free(data_);
  const size_t rounded = static_cast<size_t>((bytes + kAhead + kHugePage) / kHugePage * kHugePage);
  data_ = static_cast<uint8_t*>(std::aligned_alloc(kHugePage, rounded));
  size_ = data_ == nullptr ? 0 : bytes;
  if (data_ == nullptr) return false;
#if defined(__linux__)
  madvise(data_, rounded, huge_pages_ ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
  std::memset(data_, 1, rounded);
  return true;
}

}  // namespace tfmot_ternary
