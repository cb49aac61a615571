// Every attention kernel against the portable one, and that one against plain double arithmetic.
#include "custom_ops/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/half.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

struct Case {
  CacheType type;
  int64_t steps, heads, kv_heads, dim, length, position;
  bool masked;
  float soft_cap;
};

std::string Text(const Case& c) {
  return "type " + std::to_string(static_cast<int>(c.type)) + ", steps " + std::to_string(c.steps) +
         ", heads " + std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + ", dim " +
         std::to_string(c.dim) + ", length " + std::to_string(c.length) + ", position " +
         std::to_string(c.position) + (c.masked ? ", mask" : "") + ", cap " +
         std::to_string(c.soft_cap);
}

// Inputs of one call; the positions before it hold random rows as well.
struct Problem {
  Case shape;
  std::vector<float> query, keys, values, old_keys, old_values;
  std::vector<uint8_t> mask;

  Problem(const Case& c, uint32_t seed) : shape(c) {
    Random random(seed);
    const auto fill = [&](std::vector<float>* x, int64_t count, float size) {
      x->resize(static_cast<size_t>(count));
      for (float& value : *x) value = size * random.Float();
    };
    fill(&query, c.steps * c.heads * c.dim, 4.0f);
    fill(&keys, c.steps * c.kv_heads * c.dim, 2.0f);
    fill(&values, c.steps * c.kv_heads * c.dim, 3.0f);
    fill(&old_keys, c.position * c.kv_heads * c.dim, 2.0f);
    fill(&old_values, c.position * c.kv_heads * c.dim, 3.0f);
    if (!c.masked) return;
    mask.resize(static_cast<size_t>(c.steps * c.length));
    for (int64_t t = 0; t < c.steps; ++t) {
      // The first step sees nothing; the others have long hidden stretches.
      const int64_t hidden = random.Integer(0, c.length);
      for (int64_t s = 0; s < c.length; ++s) {
        mask[static_cast<size_t>(t * c.length + s)] =
            t > 0 && s >= hidden && random.Integer(0, 2) > 0;
      }
    }
  }

  AttentionQuery Query() const {
    AttentionQuery asked = {};
    asked.query = query.data();
    asked.steps = shape.steps;
    asked.heads = shape.heads;
    asked.position = shape.position;
    asked.mask = mask.empty() ? nullptr : mask.data();
    asked.scale = 1.0f / std::sqrt(static_cast<float>(shape.dim));
    asked.soft_cap = shape.soft_cap;
    return asked;
  }
};

struct Result {
  std::unique_ptr<AttentionCache> cache;
  std::vector<float> out;
};

Result Run(const Problem& problem, const AttentionKernel& kernel, int num_threads) {
  const Case& c = problem.shape;
  const RowKernel& row = *KernelsAt("", Format::kT2).row;
  const CacheShape shape = {c.type, c.length, c.kv_heads, c.dim};
  Result result = {AttentionCache::Make(shape), {}};
  ThreadPool pool(num_threads);
  ThreadPool* threads = num_threads > 1 ? &pool : nullptr;
  std::vector<uint8_t> memory(AttentionWorkspaceBytes(shape, c.steps, c.heads, pool.num_threads()) +
                              64);
  void* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
  StoreInCache(result.cache.get(), problem.old_keys.data(), problem.old_values.data(), c.position,
               0, kernel, row, workspace, threads);
  StoreInCache(result.cache.get(), problem.keys.data(), problem.values.data(), c.steps, c.position,
               kernel, row, workspace, threads);
  result.out.assign(problem.query.size(), std::numeric_limits<float>::quiet_NaN());
  Attend(*result.cache, problem.Query(), kernel, row, workspace, threads, result.out.data());
  return result;
}

// The float32 cache in double precision; its rows come from the inputs.
std::vector<double> Exact(const Problem& problem) {
  const Case& c = problem.shape;
  const AttentionQuery query = problem.Query();
  const auto at = [&](const std::vector<float>& old, const std::vector<float>& now, int64_t s,
                      int64_t head, int64_t d) -> double {
    return s < c.position
               ? old[static_cast<size_t>((s * c.kv_heads + head) * c.dim + d)]
               : now[static_cast<size_t>(((s - c.position) * c.kv_heads + head) * c.dim + d)];
  };
  std::vector<double> out(problem.query.size(), 0.0);
  for (int64_t t = 0; t < c.steps; ++t) {
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t head = h / (c.heads / c.kv_heads);
      const size_t begin = static_cast<size_t>((t * c.heads + h) * c.dim);
      const int64_t seen = c.position + (c.masked ? c.steps : t + 1);
      double sum = 0.0;
      for (int64_t s = 0; s < std::min(seen, c.length); ++s) {
        if (c.masked && problem.mask[static_cast<size_t>(t * c.length + s)] == 0) continue;
        double score = 0.0;
        for (int64_t d = 0; d < c.dim; ++d) {
          score += static_cast<double>(problem.query[begin + static_cast<size_t>(d)]) *
                   at(problem.old_keys, problem.keys, s, head, d);
        }
        score *= query.scale;
        if (c.soft_cap > 0.0f) score = c.soft_cap * std::tanh(score / c.soft_cap);
        // Scores stay below 8 sqrt(dim) / 3: no overflow in double.
        const double weight = std::exp(score);
        sum += weight;
        for (int64_t d = 0; d < c.dim; ++d) {
          out[begin + static_cast<size_t>(d)] +=
              weight * at(problem.old_values, problem.values, s, head, d);
        }
      }
      for (int64_t d = 0; d < c.dim && sum > 0.0; ++d) out[begin + static_cast<size_t>(d)] /= sum;
    }
  }
  return out;
}

template <typename T>
void CheckClose(const std::vector<float>& got, const std::vector<T>& expected,
                const std::string& context) {
  // Scores reach 40 and have an error of some 2e-7 of that, which the weights take over; values
  // are below 3. Sums of up to 700 weights in float32 add less.
  constexpr double kTolerance = 3 * 40 * 2e-7 * 2;
  double worst = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    if (!(error <= worst)) worst = error;
    if (std::isnan(error)) break;
  }
  CHECK_TRUE(worst <= kTolerance, context + ", error " + std::to_string(worst));
}

size_t CacheBytes(const Case& c) {
  const int64_t blocks = (c.length + 15) / 16;
  const int64_t padded = (c.dim + 15) / 16 * 16;
  return static_cast<size_t>(c.kv_heads * blocks * 16 * padded);
}

// What is stored is the same bit for bit.
void CheckStored(const Case& c, const AttentionCache& got, const AttentionCache& expected,
                 const std::string& context) {
  const size_t element = c.type == CacheType::kFloat32 ? 4 : c.type == CacheType::kFloat16 ? 2 : 1;
  CHECK_EQUAL(got.bytes(), expected.bytes(), context);
  const size_t keys = static_cast<size_t>(c.kv_heads * ((c.length + 15) / 16) * got.key_block());
  CHECK_TRUE(std::memcmp(got.Keys<uint8_t>(0), expected.Keys<uint8_t>(0), keys * element) == 0,
             context);
  CHECK_TRUE(std::memcmp(got.Values<uint8_t>(0), expected.Values<uint8_t>(0),
                         CacheBytes(c) * element) == 0,
             context);
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](int64_t steps, int64_t heads, int64_t kv_heads, int64_t dim, int64_t length,
                       int64_t position, bool masked = false, float cap = 0.0f) {
    for (CacheType type : {CacheType::kFloat32, CacheType::kFloat16, CacheType::kInt8}) {
      cases.push_back({type, steps, heads, kv_heads, dim, length, position, masked, cap});
    }
  };
  // Around the lanes in dimensions and positions, and the tiles in rows.
  for (int64_t dim : {1, 3, 4, 15, 16, 17, 31, 33, 48, 64, 80, 255, 256, 257, 300}) {
    add(1, 2, 1, dim, 50, 37);
  }
  for (int64_t position : {0, 1, 14, 15, 16, 31, 127, 128, 255, 256, 257, 511, 512, 600, 699}) {
    add(1, 2, 2, 32, 700, position);
    add(1, 8, 1, 136, 700, position);
  }
  for (int64_t steps : {2, 3, 4, 5, 6, 7, 11, 12, 13, 15, 24, 47, 48, 49, 97}) {
    add(steps, 1, 1, 20, 300, 140);
  }
  add(30, 6, 2, 64, 300, 100);
  add(30, 6, 2, 64, 300, 100, true);
  add(40, 8, 1, 256, 600, 480, true, 3.0f);
  add(1, 8, 1, 256, 600, 480, false, 30.0f);
  add(9, 64, 32, 8, 40, 31);  // as far as the end
  add(9, 4, 2, 8, 40, 35);    // rows past the end are dropped
  add(9, 4, 2, 8, 40, 35, true);
  add(1, 128, 1, 8, 33, 20);
  return cases;
}

void CheckCases() {
  int count;
  const AttentionKernel* table = AttentionKernels(&count);
  const AttentionKernel& portable = table[count - 1];
  std::vector<int64_t> comparisons(static_cast<size_t>(count), 0);
  uint32_t seed = 1;
  for (const Case& c : Cases()) {
    const Problem problem(c, ++seed);
    const Result expected = Run(problem, portable, 1);
    const std::string text = Text(c) + ", seed " + std::to_string(seed);
    if (c.type == CacheType::kFloat32) CheckClose(expected.out, Exact(problem), text + ", exact");
    for (int i = 0; i < count; ++i) {
      if (!Supported(table[i].cpu)) continue;
      const std::string context = text + ", " + table[i].name;
      const Result one = Run(problem, table[i], 1);
      CheckClose(one.out, expected.out, context);
      CheckStored(c, *one.cache, *expected.cache, context);
      const Result three = Run(problem, table[i], 3);
      CHECK_TRUE(one.out == three.out, context + ", three threads");
      ++comparisons[static_cast<size_t>(i)];
    }
  }
  for (int i = 0; i < count; ++i) {
    RecordKernel(table[i].name, table[i].cpu, comparisons[static_cast<size_t>(i)]);
  }
}

// A value that is not finite shows in every row that sees it, and in no other.
void CheckNotFinite() {
  int count;
  const AttentionKernel* table = AttentionKernels(&count);
  for (CacheType type : {CacheType::kFloat32, CacheType::kFloat16, CacheType::kInt8}) {
    Problem problem({type, 5, 4, 2, 24, 60, 20, false, 0.0f}, 7);
    problem.keys[(3 * 2 + 1) * 24 + 5] = std::numeric_limits<float>::quiet_NaN();
    for (int i = 0; i < count; ++i) {
      if (!Supported(table[i].cpu)) continue;
      const Result result = Run(problem, table[i], 1);
      for (int64_t t = 0; t < 5; ++t) {
        for (int64_t h = 0; h < 4; ++h) {
          const bool sees = t >= 3 && h >= 2;
          const float value = result.out[static_cast<size_t>((t * 4 + h) * 24 + 3)];
          CHECK_EQUAL(std::isnan(value), sees, table[i].name + std::to_string(t * 4 + h));
        }
      }
    }
  }
}

void CheckHalves() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = FloatFromHalf(half);
    if (std::isnan(value)) continue;
    CHECK_EQUAL(HalfFromFloat(value), half, "half " + std::to_string(bits));
    // Just below and above the middle to the next one.
    const float next = FloatFromHalf(static_cast<uint16_t>(half + 1));
    if (std::isnan(next) || std::isinf(next) || std::isinf(value)) continue;
    const float middle = value + (next - value) / 2;
    const uint16_t even = (half & 1) == 0 ? half : static_cast<uint16_t>(half + 1);
    CHECK_EQUAL(HalfFromFloat(middle), even, "middle after " + std::to_string(bits));
    CHECK_EQUAL(HalfFromFloat(std::nextafter(middle, value)), half, std::to_string(bits));
    CHECK_EQUAL(HalfFromFloat(std::nextafter(middle, next)), half + 1, std::to_string(bits));
  }
  CHECK_EQUAL(HalfFromFloat(65519.0f), 0x7bff, "largest");
  CHECK_EQUAL(HalfFromFloat(65520.0f), 0x7c00, "infinity");
}

void CheckTable() {
  int count;
  const AttentionKernel* table = AttentionKernels(&count);
  for (int i = 0; i < count; ++i) {
    CHECK_TRUE(SelectAttention(table[i].cpu) == &table[i], table[i].name);
  }
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::CheckTable();
  tfmot_ternary::CheckHalves();
  tfmot_ternary::CheckCases();
  tfmot_ternary::CheckNotFinite();
  return tfmot_ternary::Finish("attention_test");
}
