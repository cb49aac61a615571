// How much work threads do in a second.
#ifndef TFMOT_TERNARY_BENCHMARKS_RATE_H_
#define TFMOT_TERNARY_BENCHMARKS_RATE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace tfmot_ternary {

using Clock = std::chrono::steady_clock;

inline double Seconds(Clock::time_point from) {
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

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_BENCHMARKS_RATE_H_
