// Every row kernel and unpacker of the table against the portable one: equal bits. The quantizer
// against the definition, too.
#include "custom_ops/kernels/row.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/float_kernel.h"
#include "custom_ops/kernels/gemm.h"
#include "custom_ops/kernels/kernels.h"
#include "custom_ops/kernels/product.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 7;

bool SameBits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

enum class Values { kUniform, kHeavyTail, kRamp, kEqual, kTiny, kHalves };

std::vector<float> MakeRow(int64_t k, Values values, Random* random) {
  std::vector<float> x(k);
  for (int64_t i = 0; i < k; ++i) {
    const float u = random->Float();
    switch (values) {
      case Values::kUniform:
        x[i] = u;
        break;
      case Values::kHeavyTail:
        x[i] = u / (1.0001f - std::fabs(u));
        break;
      case Values::kRamp:
        x[i] = static_cast<float>(i) - static_cast<float>(k) / 2;
        break;
      case Values::kEqual:
        x[i] = -0.37f;
        break;
      case Values::kTiny:
        x[i] = u * 1e-38f;
        break;
      case Values::kHalves:  // scale 1: every value lies between two integers
        x[i] = i == 0 ? 127.0f : static_cast<float>(random->Integer(-127, 126)) + 0.5f;
        break;
    }
  }
  return x;
}

void CheckQuantization(const RowKernel& kernel, const RowKernel& portable) {
  Random random(kSeed);
  for (int64_t k : RowLengths()) {
    for (Values values : {Values::kUniform, Values::kHeavyTail, Values::kRamp, Values::kEqual,
                          Values::kTiny, Values::kHalves}) {
      const std::string context = std::string(kernel.name) + " k=" + std::to_string(k) +
                                  " values " + std::to_string(static_cast<int>(values)) +
                                  " seed=" + std::to_string(kSeed);
      const std::vector<float> x = MakeRow(k, values, &random);
      float scale, inverse, scale_portable, inverse_portable;
      CHECK_TRUE(RowScale(kernel, x.data(), k, &scale, &inverse), context);
      CHECK_TRUE(RowScale(portable, x.data(), k, &scale_portable, &inverse_portable), context);
      CHECK_EQUAL(scale, scale_portable, context);
      CHECK_EQUAL(inverse, inverse_portable, context);
      std::vector<int8_t> q(k), expected(k);
      kernel.functions->quantize(x.data(), k, inverse, q.data());
      portable.functions->quantize(x.data(), k, inverse, expected.data());
      CHECK_TRUE(q == expected, context);
      for (int64_t i = 0; i < k; ++i) {
        const float rounded = std::nearbyint(x[i] * inverse);  // half to even
        CHECK_EQUAL(q[i], static_cast<int>(std::min(127.0f, std::max(-127.0f, rounded))), context);
      }
      for (int64_t group_size :
           {int64_t{3}, int64_t{32}, int64_t{48}, int64_t{64}, int64_t{128}, int64_t{256}, k}) {
        const int64_t groups = (k + group_size - 1) / group_size;
        std::vector<int32_t> sums(groups), exact(groups);
        kernel.functions->sum_groups(q.data(), k, group_size, sums.data());
        for (int64_t i = 0; i < k; ++i) exact[i / group_size] += q[i];
        CHECK_TRUE(sums == exact, context + " group_size=" + std::to_string(group_size));
      }
    }
    // One value that is not finite, anywhere, of either sign.
    for (float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> x = MakeRow(k, Values::kUniform, &random);
      x[random.Integer(0, k - 1)] = bad;
      float scale, inverse;
      CHECK_TRUE(!RowScale(kernel, x.data(), k, &scale, &inverse), kernel.name);
      CHECK_TRUE(std::isnan(scale), kernel.name);
    }
    const std::vector<float> zeros(k, -0.0f);
    float scale, inverse;
    CHECK_TRUE(RowScale(kernel, zeros.data(), k, &scale, &inverse), kernel.name);
    CHECK_EQUAL(scale, 0.0f, kernel.name);
    CHECK_EQUAL(inverse, 0.0f, kernel.name);
    std::vector<float> largest(k, std::numeric_limits<float>::max());
    CHECK_TRUE(RowScale(kernel, largest.data(), k, &scale, &inverse), kernel.name);
  }
}

void CheckEpilogue(const RowKernel& kernel, const RowKernel& portable) {
  Random random(kSeed);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int count = 1; count <= kTileRows; ++count) {
    for (int64_t groups : {1, 2, 7}) {
      Aligned<int32_t> acc(groups * kTileRows);
      std::vector<float> scales(groups * kTileRows), bias(count);
      for (int64_t i = 0; i < acc.size(); ++i) {
        acc[i] = static_cast<int32_t>(random.Integer(-40000000, 40000000));
      }
      for (float& scale : scales) scale = std::fabs(random.Float()) + 1e-6f;
      for (float& value : bias) value = 3.0f * random.Float();
      for (Activation activation : {Activation::kNone, Activation::kRelu, Activation::kRelu6}) {
        for (const float* b :
             {static_cast<const float*>(nullptr), static_cast<const float*>(bias.data())}) {
          for (float scale_x : {3e-7f, nan}) {
            const std::string context = std::string(kernel.name) +
                                        " count=" + std::to_string(count) +
                                        " seed=" + std::to_string(kSeed);
            std::vector<float> y(count, 1.0f), expected(count, 2.0f);
            for (bool one_scale : {false, true}) {
              kernel.functions->finish(acc.data(), count, scale_x, scales.data(), one_scale, b,
                                       activation, y.data());
              portable.functions->finish(acc.data(), count, scale_x, scales.data(), one_scale, b,
                                         activation, expected.data());
              for (int r = 0; r < count; ++r) {
                CHECK_TRUE(std::isnan(scale_x) ? std::isnan(y[r]) && std::isnan(expected[r])
                                               : SameBits(&y[r], &expected[r], 1),
                           context);
                float value = static_cast<float>(acc[r]) * (scale_x * scales[one_scale ? 0 : r]);
                if (b != nullptr) value += b[r];
                if (activation != Activation::kNone && value < 0.0f) value = 0.0f;
                if (activation == Activation::kRelu6 && value > 6.0f) value = 6.0f;
                if (!std::isnan(scale_x)) CHECK_EQUAL(y[r], value, context);
              }
            }
            std::vector<float> sums(kTileRows, 0.5f), expected_sums(kTileRows, 0.5f);
            kernel.functions->add_groups(acc.data(), scales.data(), groups, sums.data());
            portable.functions->add_groups(acc.data(), scales.data(), groups, expected_sums.data());
            CHECK_TRUE(SameBits(sums.data(), expected_sums.data(), kTileRows), context);
            kernel.functions->finish_groups(sums.data(), count, scale_x, b, activation, y.data());
            portable.functions->finish_groups(sums.data(), count, scale_x, b, activation,
                                              expected.data());
            CHECK_TRUE(std::isnan(scale_x) || SameBits(y.data(), expected.data(), count), context);
          }
        }
      }
    }
  }
}

void CheckTranspose(const RowKernel& kernel) {
  Random random(kSeed);
  for (int rows = 1; rows <= kTileRows; ++rows) {
    for (int64_t groups : {1, 2, 15, 16, 17, 33}) {
      Aligned<float> scales(rows * groups), out(groups * kTileRows);
      for (int64_t i = 0; i < scales.size(); ++i) scales[i] = random.Float();
      kernel.functions->transpose(scales.data(), rows, groups, out.data());
      bool equal = true;
      for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t row = std::min<int64_t>(i % kTileRows, rows - 1);
        equal &= out[i] == scales[row * groups + i / kTileRows];
      }
      CHECK_TRUE(equal, std::string(kernel.name) + " rows=" + std::to_string(rows) +
                            " groups=" + std::to_string(groups));
    }
  }
}

void CheckFloatRows(const RowKernel& kernel, const RowKernel& portable) {
  Random random(kSeed);
  for (int64_t k : RowLengths()) {
    const std::string context = std::string(kernel.name) + " k=" + std::to_string(k);
    const std::vector<float> x = MakeRow(k, Values::kHeavyTail, &random);
    const std::vector<int8_t> w = MakeCodes(Format::kT2, k, WeightPattern::kRandom, &random);
    const float dot = kernel.functions->dot(x.data(), w.data(), k);
    CHECK_EQUAL(dot, portable.functions->dot(x.data(), w.data(), k), context);
    double exact = 0.0, magnitude = 0.0;
    for (int64_t i = 0; i < k; ++i) {
      exact += static_cast<double>(x[i]) * w[i];
      magnitude += std::fabs(x[i] * w[i]);
    }
    // Products with -1, 0, +1 are exact; an addend passes at most k / 16 + 5 roundings of 2^-24.
    const double bound = magnitude * (static_cast<double>(k) / 16 + 5) * std::ldexp(1.0, -24);
    CHECK_TRUE(std::fabs(dot - exact) <= bound, context);
    std::vector<float> out(k);
    kernel.functions->scale(w.data(), k, 0.3f, out.data());
    for (int64_t i = 0; i < k; ++i) CHECK_EQUAL(out[i], static_cast<float>(w[i]) * 0.3f, context);
  }
}

void CheckCopyPatches(const RowKernel& kernel) {
  Random random(kSeed);
  for (int64_t run_bytes : {1, 3, 9, 31, 48, 64, 127, 192, 200}) {
    for (int64_t runs : {1, 3}) {
      for (int64_t count : {1, 4}) {
        const int64_t step = 5;
        const int64_t run_step = run_bytes + 7;
        const int64_t to_step = runs * run_bytes + 11;
        std::vector<uint8_t> from((count - 1) * step + (runs - 1) * run_step + run_bytes);
        for (uint8_t& byte : from) byte = static_cast<uint8_t>(random.Next());
        std::vector<uint8_t> expected((count - 1) * to_step + runs * run_bytes, 0);
        std::vector<uint8_t> to(expected.size(), 0);
        for (int64_t p = 0; p < count; ++p) {
          for (int64_t i = 0; i < runs * run_bytes; ++i) {
            expected[p * to_step + i] = from[p * step + i / run_bytes * run_step + i % run_bytes];
          }
        }
        const Patches patches = {from.data(), step, runs, run_step, run_bytes};
        kernel.functions->copy_patches(patches, count, to_step, to.data());
        CHECK_TRUE(to == expected, std::string(kernel.name) + " run " + std::to_string(run_bytes));
      }
    }
  }
}

// The kernels that go from packed bytes to float32, against their definition by portable functions.
void CheckFloatKernel(const FloatKernel& kernel, const RowKernel& portable) {
  Random random(kSeed);
  for (int64_t k : RowLengths()) {
    const int64_t row_bytes = RowBytes(kernel.format, k);
    const int row_count = 1 + static_cast<int>(random.Integer(0, kTileRows - 1));
    const int64_t m = 1 + random.Integer(0, 13);
    Aligned<uint8_t> packed(row_count * row_bytes);
    for (int64_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<uint8_t>(random.Next());
    std::vector<int8_t> codes(row_count * k);
    for (int r = 0; r < row_count; ++r) {
      UnpackRow(kernel.format, packed.data() + r * row_bytes, k, &codes[r * k]);
    }
    const std::vector<float> x = MakeRow(m * k, Values::kHeavyTail, &random);
    for (int64_t group_size : {int64_t{0}, int64_t{32}, int64_t{64}, int64_t{128}, int64_t{256}}) {
      const int64_t size = group_size == 0 ? k : group_size;
      const int64_t groups = (k + size - 1) / size;
      const std::string context = std::string(kernel.name) + " k=" + std::to_string(k) +
                                  " group_size=" + std::to_string(group_size);
      std::vector<float> scales(row_count * groups);
      for (float& scale : scales) scale = std::fabs(random.Float());

      Aligned<float> out(k);
      kernel.functions->dequantize(packed.data(), k, scales.data(), group_size, out.data());
      bool equal = true;
      for (int64_t i = 0; i < k; ++i) {
        equal &= out[i] == static_cast<float>(codes[i]) * scales[i / size];
      }
      CHECK_TRUE(equal, context);

      GemmTile tile = {kernel.format, packed.data(), row_bytes, row_count, k,
                       groups,        size,          nullptr};
      Aligned<float> sums(m * kTileRows);
      kernel.functions->multiply(tile, scales.data(), groups, x.data(), m, sums.data());
      equal = true;
      for (int64_t i = 0; i < m; ++i) {
        for (int r = 0; r < row_count; ++r) {
          float sum = 0.0f;
          for (int64_t g = 0; g < groups; ++g) {
            const int64_t begin = g * size;
            sum += scales[r * groups + g] * portable.functions->dot(&x[i * k + begin],
                                                                    &codes[r * k + begin],
                                                                    std::min(size, k - begin));
          }
          equal &= sums[i * kTileRows + r] == sum;
        }
      }
      CHECK_TRUE(equal, context + " m=" + std::to_string(m) + " rows " + std::to_string(row_count));
    }
  }
}

void CheckUnpack(const UnpackKernel& kernel) {
  Random random(kSeed);
  std::vector<int64_t> lengths = RowLengths();
  lengths.push_back(100000);
  for (int64_t k : lengths) {
    for (bool any_bytes : {false, true}) {
      Aligned<uint8_t> packed(RowBytes(kernel.format, k));
      PackRow(kernel.format, MakeCodes(kernel.format, k, WeightPattern::kRandom, &random),
              packed.data());
      if (any_bytes) {  // bytes without a code have defined digits as well
        for (int64_t i = 0; i < packed.size(); ++i) packed[i] = static_cast<uint8_t>(random.Next());
      }
      Aligned<int8_t> got(k), expected(k);
      kernel.unpack(packed.data(), k, got.data());
      UnpackRow(kernel.format, packed.data(), k, expected.data());
      CHECK_TRUE(std::memcmp(got.data(), expected.data(), static_cast<size_t>(k)) == 0,
                 std::string(kernel.name) + " k=" + std::to_string(k) +
                     (any_bytes ? " any bytes" : "") + " seed=" + std::to_string(kSeed));
    }
  }
}

void Main() {
  int count;
  const RowKernel* rows = RowKernels(&count);
  const RowKernel& portable = rows[count - 1];
  CHECK_EQUAL(portable.cpu, static_cast<CpuFlags>(kCpuPortable), portable.name);
  for (int i = 0; i < count; ++i) {
    const int64_t before = Checks();
    if (Supported(rows[i].cpu)) {
      CheckQuantization(rows[i], portable);
      CheckEpilogue(rows[i], portable);
      CheckTranspose(rows[i]);
      CheckFloatRows(rows[i], portable);
      CheckCopyPatches(rows[i]);
    }
    RecordKernel(rows[i].name, rows[i].cpu, Checks() - before);
  }
  const FloatKernel* floats = FloatKernels(&count);
  for (int i = 0; i < count; ++i) {
    const int64_t before = Checks();
    if (Supported(floats[i].cpu)) CheckFloatKernel(floats[i], portable);
    RecordKernel(floats[i].name, floats[i].cpu, Checks() - before);
  }
  const UnpackKernel* unpackers = UnpackKernels(&count);
  for (int i = 0; i < count; ++i) {
    const int64_t before = Checks();
    if (Supported(unpackers[i].cpu)) CheckUnpack(unpackers[i]);
    RecordKernel(unpackers[i].name, unpackers[i].cpu, Checks() - before);
  }
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::Main();
  return tfmot_ternary::Finish("row_test");
}
