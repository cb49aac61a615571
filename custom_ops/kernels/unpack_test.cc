// unpack and embedding_lookup: codes times scales, exactly.
#include "custom_ops/kernels/unpack.h"

#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/test_matrix.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 5;

void CheckCase(Format format, int64_t n, int64_t k, int64_t group_size, ThreadPool* pool,
               Random* random) {
  const TestMatrix matrix(format, n, k, group_size, random);
  std::vector<int32_t> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(static_cast<int32_t>(random->Integer(0, n - 1)));
  const int64_t count = static_cast<int64_t>(ids.size());
  for (const char* level : kCpuLevels) {
    const Kernels kernels = KernelsAt(level, format);
    const std::string context = matrix.Describe(kSeed) + " at " + level;
    for (ThreadPool* p : {static_cast<ThreadPool*>(nullptr), pool}) {
      Aligned<float> out(n * k), rows(count * k);
      Unpack(matrix.weights, kernels, p, out.data());
      bool equal = true;
      for (int64_t i = 0; i < n * k; ++i) {
        equal &=
            out[i] == static_cast<float>(matrix.codes[i / k][i % k]) * matrix.Scale(i / k, i % k);
      }
      CHECK_TRUE(equal, context);
      CHECK_EQUAL(EmbeddingLookup(matrix.weights, ids.data(), count, kernels, p, rows.data()), -1,
                  context);
      equal = true;
      for (int64_t i = 0; i < count * k; ++i) equal &= rows[i] == out[ids[i / k] * k + i % k];
      CHECK_TRUE(equal, context);
    }
  }
}

void CheckBadIds() {
  Random random(kSeed);
  const TestMatrix matrix(Format::kT2, 4, 10, 0, &random);
  const Kernels kernels = KernelsAt("portable", Format::kT2);
  float out[30];
  for (int32_t bad : {-1, 4, INT32_MIN, INT32_MAX}) {
    const int32_t ids[] = {0, 3, bad};
    CHECK_EQUAL(EmbeddingLookup(matrix.weights, ids, 3, kernels, nullptr, out), 2,
                std::to_string(bad));
  }
  CHECK_EQUAL(EmbeddingLookup(matrix.weights, nullptr, 0, kernels, nullptr, out), -1, "no ids");
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  using tfmot_ternary::CheckCase;
  tfmot_ternary::ThreadPool pool(3);
  tfmot_ternary::Random random(tfmot_ternary::kSeed);
  for (tfmot_ternary::Format format : tfmot_ternary::kFormats) {
    for (int64_t k : {1, 33, 64, 255, 320, 513, 2559, 2560, 2561, 5200}) {
      for (int64_t group_size : {-1, 0, 32, 64, 128, 256}) {
        CheckCase(format, 7, k, group_size, &pool, &random);
      }
    }
    CheckCase(format, 300, 257, 64, &pool, &random);
  }
  tfmot_ternary::CheckBadIds();
  return tfmot_ternary::Finish("unpack_test");
}
