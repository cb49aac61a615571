// Read bandwidth of caches and memory.
#ifndef TFMOT_TERNARY_BENCHMARKS_READ_BANDWIDTH_H_
#define TFMOT_TERNARY_BENCHMARKS_READ_BANDWIDTH_H_

#include <cstdint>
#include <vector>

namespace tfmot_ternary {

// Memory that the reads walk over: kept from request to request, because to fill gigabytes takes
// longer than to read them. The walk goes on where the last one has left it, so that short ones see
// all of the memory.
class Walk {
 public:
  explicit Walk(bool huge_pages) : huge_pages_(huge_pages) {}
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;
  ~Walk();

  // GB/s of reading `bytes` (whole MiB) over and over, a share for each thread; 0 where the memory
  // is missing.
  double Gigabytes(int64_t bytes, int threads, double seconds);

 private:
  struct alignas(64) Place {
    int64_t piece = 0;
  };

  bool Fill(int64_t bytes);

  bool huge_pages_;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  std::vector<Place> places_;
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_BENCHMARKS_READ_BANDWIDTH_H_
