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
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>

#include "benchmarks/dot_peak.h"
#include "benchmarks/rate.h"
#include "benchmarks/read_bandwidth.h"

namespace tfmot_ternary {
namespace {

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
      const double gops = DotGops(name, threads, ms * 1e-3);
      if (gops < 0) {
        std::printf("unsupported\n");
      } else {
        std::printf("%.6g\n", gops);
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
