// Times the kernels of the table without an interpreter.
//
//   kernel_benchmark MxNxK [filter] [group_size] [threads] [walk_mib]
//
// For each kernel of this CPU whose name contains `filter` ("" for all): microseconds of the bare
// integer product (one thread), and of the whole call (quantization, product, scales) with the
// kernel in both roles. Each figure is the median of 21 rounds of at least 2 ms; kernels take turns
// within a round. group_size 0 (the default) is one scale per channel. walk_mib: the call walks
// over that many MiB of packed matrices, so that the weights come from memory, not from a cache.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "custom_ops/kernels/fully_connected.h"
#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

constexpr int kRounds = 21;
constexpr double kRoundSeconds = 2e-3;
constexpr uint64_t kSeed = 20261121;

double Now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

// Random bytes that are valid codes of the format, as any bytes are but for 3 in t2 and 243 and
// more in t5.
void FillPacked(Format format, Random* random, uint8_t* out, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    uint8_t byte = static_cast<uint8_t>(random->Next());
    if (format == Format::kT2) byte &= static_cast<uint8_t>(~(byte << 1 & 0xaa));
    if (format == Format::kT5) byte = static_cast<uint8_t>(byte % 243);
    out[i] = byte;
  }
}

struct Timed {
  std::string name;
  std::function<void()> run;
  std::vector<double> seconds;
  int64_t repeats = 1;
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void Measure(std::vector<Timed>* entries) {
  for (Timed& entry : *entries) {
    entry.run();
    const double start = Now();
    entry.run();
    entry.repeats = std::max<int64_t>(1, static_cast<int64_t>(kRoundSeconds / (Now() - start)));
  }
  for (int round = 0; round < kRounds; ++round) {
    for (Timed& entry : *entries) {
      const double start = Now();
      for (int64_t i = 0; i < entry.repeats; ++i) entry.run();
      entry.seconds.push_back((Now() - start) / static_cast<double>(entry.repeats));
    }
  }
}

// One matrix, walked over `copies` times so that it comes from memory.
class Subject {
 public:
  Subject(const GemmKernel& kernel, int64_t m, int64_t n, int64_t k, int64_t group_size,
          int threads, int64_t walk_bytes)
      : kernel_(kernel),
        m_(m),
        matrix_bytes_(n * RowBytes(kernel.format, k)),
        copies_(std::max<int64_t>(1, walk_bytes / matrix_bytes_)),
        packed_(copies_ * matrix_bytes_),
        groups_(group_size == 0 ? 1 : (k + group_size - 1) / group_size),
        scales_(n * groups_),
        x_(m * k),
        y_(m * n),
        q_(m * ActivationStride(k)),
        sums_(m * groups_),
        acc_(kernel.functions->block_m * groups_ * kTileRows),
        scratch_(static_cast<int64_t>(kernel.functions->scratch_bytes(k))),
        pool_(threads) {
    Random random(kSeed);
    FillPacked(kernel.format, &random, packed_.data(), packed_.size());
    for (int64_t i = 0; i < scales_.size(); ++i) scales_[i] = 0.01f;
    for (int64_t i = 0; i < x_.size(); ++i) x_[i] = random.Float();
    std::memset(q_.data(), 0, static_cast<size_t>(q_.size()));
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        q_[i * ActivationStride(k) + j] = static_cast<int8_t>(random.Integer(-127, 127));
      }
    }
    std::memset(sums_.data(), 0, static_cast<size_t>(sums_.size()) * sizeof(int32_t));
    const ScaleLayout layout = group_size == 0 ? ScaleLayout::kChannel : ScaleLayout::kGroup;
    weights_ = {kernel.format, n, k, packed_.data(), scales_.data(), layout, group_size};
    kernels_ = SelectKernels(HostCpu(), kernel.format);
    kernels_.decode = kernels_.prefill = &kernel_;
    const size_t bytes = FullyConnectedWorkspaceBytes(weights_, m, Activations::kInt8, threads);
    workspace_ = std::make_unique<Aligned<uint8_t>>(static_cast<int64_t>(bytes));
  }

  void Product() {
    const GemmFunctions& gemm = *kernel_.functions;
    GemmTile tile = {kernel_.format,
                     nullptr,
                     RowBytes(kernel_.format, weights_.k),
                     0,
                     weights_.k,
                     groups_,
                     groups_ == 1 ? weights_.k : weights_.group_size,
                     scratch_.data()};
    const int64_t stride = ActivationStride(weights_.k);
    for (int64_t r = 0; r < weights_.n; r += kTileRows) {
      tile.rows = NextRows(r);
      tile.row_count = static_cast<int>(std::min<int64_t>(kTileRows, weights_.n - r));
      if (gemm.load != nullptr) gemm.load(tile);
      for (int64_t i = 0; i < m_; i += gemm.block_m) {
        const GemmInput input = {q_.data() + i * stride, stride, sums_.data() + i * groups_,
                                 std::min(gemm.block_m, m_ - i)};
        const int64_t step = gemm.group_ranges ? std::min<int64_t>(groups_, 8) : groups_;
        for (int64_t g = 0; g < groups_; g += step) {
          gemm.multiply(tile, input, g, std::min(groups_, g + step), acc_.data());
        }
      }
    }
    Advance();
  }

  void Call() {
    PackedWeights weights = weights_;
    weights.data = NextRows(0);
    FullyConnected(weights, x_.data(), m_, {nullptr, Activation::kNone}, Activations::kInt8,
                   kernels_, workspace_->data(), &pool_, y_.data());
    Advance();
  }

 private:
  const uint8_t* NextRows(int64_t row) const {
    return packed_.data() + copy_ * matrix_bytes_ + row * RowBytes(kernel_.format, weights_.k);
  }
  void Advance() { copy_ = (copy_ + 1) % copies_; }

  GemmKernel kernel_;
  int64_t m_;
  int64_t matrix_bytes_;
  int64_t copies_;
  int64_t copy_ = 0;
  Aligned<uint8_t> packed_;
  int64_t groups_;
  Aligned<float> scales_;
  Aligned<float> x_;
  Aligned<float> y_;
  Aligned<int8_t> q_;
  Aligned<int32_t> sums_;
  Aligned<int32_t> acc_;
  Aligned<uint8_t> scratch_;
  ThreadPool pool_;
  PackedWeights weights_;
  Kernels kernels_;
  std::unique_ptr<Aligned<uint8_t>> workspace_;
};

int Run(int argc, char** argv) {
  long long m = 0, n = 0, k = 0;
  if (argc < 2 || std::sscanf(argv[1], "%lldx%lldx%lld", &m, &n, &k) != 3 || m < 1 || n < 1 ||
      k < 1) {
    std::fprintf(stderr,
                 "usage: kernel_benchmark MxNxK [filter] [group_size] [threads] [walk_mib]\n");
    return 2;
  }
  const char* filter = argc > 2 ? argv[2] : "";
  const int64_t group_size = argc > 3 ? std::atoll(argv[3]) : 0;
  const int threads = argc > 4 ? std::atoi(argv[4]) : 1;
  const int64_t walk_bytes = (argc > 5 ? std::atoll(argv[5]) : 0) << 20;
  int count;
  const GemmKernel* table = GemmKernels(&count);
  std::vector<std::unique_ptr<Subject>> subjects;
  std::vector<Timed> entries;
  for (int i = 0; i < count; ++i) {
    const bool supported = (HostCpu() & table[i].cpu) == table[i].cpu;
    const bool fits = table[i].min_m <= 1 || k <= kMaxTiledK;
    if (!supported || !fits || std::strstr(table[i].name, filter) == nullptr) continue;
    subjects.push_back(
        std::make_unique<Subject>(table[i], m, n, k, group_size, threads, walk_bytes));
    Subject* subject = subjects.back().get();
    entries.push_back({std::string(table[i].name) + " product", [=] { subject->Product(); }, {}});
    entries.push_back({std::string(table[i].name) + " call", [=] { subject->Call(); }, {}});
  }
  Measure(&entries);
  std::printf("%s, group size %lld, %d thread(s) in calls\n%-34s %10s %10s %8s\n", argv[1],
              static_cast<long long>(group_size), threads, "", "us median", "us best", "GOPS");
  for (const Timed& entry : entries) {
    const double seconds = Median(entry.seconds);
    std::printf("%-34s %10.2f %10.2f %8.0f\n", entry.name.c_str(), seconds * 1e6,
                *std::min_element(entry.seconds.begin(), entry.seconds.end()) * 1e6,
                2e-9 * static_cast<double>(m * n * k) / seconds);
  }
  return 0;
}

}  // namespace
}  // namespace tfmot_ternary

int main(int argc, char** argv) { return tfmot_ternary::Run(argc, argv); }
