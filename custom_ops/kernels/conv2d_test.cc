// conv2d against fully_connected on patches that the test cuts out, pixel by pixel, and against
// float64; geometry against TensorFlow's rules written down as sizes.
#include "custom_ops/kernels/conv2d.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/test_matrix.h"

namespace tfmot_ternary {
namespace {

constexpr uint64_t kSeed = 11;

void CheckGeometry() {
  struct Case {
    Padding padding;
    int64_t in, kernel, stride, dilation, out, pad;
  };
  // Output size and padding in front, as tf.nn.conv2d has them.
  const Case cases[] = {
      {Padding::kValid, 7, 3, 1, 1, 5, 0}, {Padding::kValid, 7, 3, 2, 1, 3, 0},
      {Padding::kValid, 8, 3, 2, 1, 3, 0}, {Padding::kValid, 7, 3, 1, 2, 3, 0},
      {Padding::kSame, 7, 3, 1, 1, 7, 1},  {Padding::kSame, 7, 3, 2, 1, 4, 1},
      {Padding::kSame, 8, 3, 2, 1, 4, 0},  {Padding::kSame, 8, 2, 1, 1, 8, 0},
      {Padding::kSame, 7, 3, 1, 2, 7, 2},  {Padding::kSame, 5, 1, 3, 1, 2, 0},
      {Padding::kSame, 1, 5, 1, 1, 1, 2},
  };
  for (const Case& c : cases) {
    Conv2DGeometry geometry = {1, c.in, 1, 1, c.kernel, 1, c.stride, 1, c.dilation, 1, 0, 0, 0, 0};
    const std::string context = "in=" + std::to_string(c.in) +
                                " kernel=" + std::to_string(c.kernel) +
                                " stride=" + std::to_string(c.stride);
    CHECK_TRUE(SetOutput(c.padding, &geometry), context);
    CHECK_EQUAL(geometry.out_h, c.out, context);
    CHECK_EQUAL(geometry.pad_top, c.pad, context);
    Conv2DGeometry turned = {1, 1, c.in, 1, 1, c.kernel, 1, c.stride, 1, c.dilation, 0, 0, 0, 0};
    CHECK_TRUE(SetOutput(c.padding, &turned), context);
    CHECK_EQUAL(turned.out_w, c.out, context);
    CHECK_EQUAL(turned.pad_left, c.pad, context);
  }
  Conv2DGeometry small = {1, 2, 2, 1, 3, 3, 1, 1, 1, 1, 0, 0, 0, 0};
  CHECK_TRUE(!SetOutput(Padding::kValid, &small), "kernel larger than the image");
  Conv2DGeometry no_stride = {1, 2, 2, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0};
  CHECK_TRUE(!SetOutput(Padding::kSame, &no_stride), "stride 0");
}

// The value of the padded image.
float Pixel(const Conv2DGeometry& g, const float* image, int64_t h, int64_t w, int64_t c) {
  if (h < 0 || h >= g.in_h || w < 0 || w >= g.in_w) return 0.0f;
  return image[(h * g.in_w + w) * g.in_c + c];
}

std::vector<float> RunConv(const TestMatrix& matrix, const Conv2DGeometry& geometry,
                           const std::vector<float>& x, const Epilogue& epilogue,
                           Activations activations, const char* level, ThreadPool* pool) {
  const int threads = pool == nullptr ? 1 : pool->num_threads();
  Aligned<uint8_t> workspace(
      static_cast<int64_t>(Conv2DWorkspaceBytes(matrix.weights, geometry, activations, threads)));
  std::memset(workspace.data(), 0x7f, workspace.size());
  Aligned<float> y(geometry.batch * geometry.out_h * geometry.out_w * matrix.weights.n);
  Conv2D(matrix.weights, geometry, x.data(), epilogue, activations,
         KernelsAt(level, matrix.weights.format), workspace.data(), pool, y.data());
  return std::vector<float>(y.data(), y.data() + y.size());
}

void CheckCase(Format format, int64_t n, int64_t group_size, const Conv2DGeometry& g,
               ThreadPool* pool, Random* random) {
  const int64_t k = g.PatchSize();
  const TestMatrix matrix(format, n, k, group_size, random);
  std::vector<float> x(g.batch * g.in_h * g.in_w * g.in_c), bias(n);
  for (float& value : x) value = random->Float() * random->Float();
  for (float& value : bias) value = random->Float();
  const Epilogue epilogue = {bias.data(), Activation::kNone};
  const std::string context =
      matrix.Describe(kSeed) + " out " + std::to_string(g.out_h) + "x" + std::to_string(g.out_w);
  const int64_t image_size = g.in_h * g.in_w * g.in_c;
  const int64_t outputs = g.out_h * g.out_w;
  const std::vector<float> exact_y =
      RunConv(matrix, g, x, epilogue, Activations::kFloat32, "portable", nullptr);
  const std::vector<float> y =
      RunConv(matrix, g, x, epilogue, Activations::kInt8, "portable", nullptr);
  const double groups = static_cast<double>(GroupCount(matrix.weights));
  const double unit = 1.0 / (1 << 24);
  for (int64_t b = 0; b < g.batch; ++b) {
    const float* image = &x[b * image_size];
    float largest = 0.0f;
    for (int64_t i = 0; i < image_size; ++i) largest = std::max(largest, std::fabs(image[i]));
    for (int64_t o = 0; o < outputs; ++o) {
      std::vector<float> patch;
      for (int64_t i = 0; i < g.kernel_h; ++i) {
        for (int64_t j = 0; j < g.kernel_w; ++j) {
          for (int64_t c = 0; c < g.in_c; ++c) {
            patch.push_back(Pixel(g, image, o / g.out_w * g.stride_h - g.pad_top + i * g.dilation_h,
                                  o % g.out_w * g.stride_w - g.pad_left + j * g.dilation_w, c));
          }
        }
      }
      for (int64_t r = 0; r < n; ++r) {
        double exact = bias[r], magnitude = std::fabs(bias[r]), weight_sum = 0.0;
        for (int64_t j = 0; j < k; ++j) {
          exact += matrix.Weight(r, j) * patch[j];
          magnitude += std::fabs(matrix.Weight(r, j) * patch[j]);
          weight_sum += std::fabs(matrix.Weight(r, j));
        }
        // The bounds of fully_connected_test.cc, with the largest value of the image.
        const double steps = weight_sum * largest / 254.0 * (1.0 + 1.0 / 1024);
        const double int8_bound = steps + (groups + 6) * unit * (magnitude + steps);
        const double float_bound = (static_cast<double>(k) / 16 + groups + 8) * unit * magnitude;
        const int64_t at = (b * outputs + o) * n + r;
        CHECK_TRUE(std::fabs(y[at] - exact) <= int8_bound, context + " int8");
        CHECK_TRUE(std::fabs(exact_y[at] - exact) <= float_bound, context + " float32");
      }
    }
  }
  for (const char* level : kCpuLevels) {
    for (ThreadPool* p : {static_cast<ThreadPool*>(nullptr), pool}) {
      CHECK_TRUE(RunConv(matrix, g, x, epilogue, Activations::kInt8, level, p) == y,
                 context + " at " + level);
      CHECK_TRUE(RunConv(matrix, g, x, epilogue, Activations::kFloat32, level, p) == exact_y,
                 context + " float32 at " + level);
    }
  }
}

void CheckSizes(ThreadPool* pool) {
  Random random(kSeed);
  int number = 0;
  for (Format format : kFormats) {
    for (Padding padding : {Padding::kSame, Padding::kValid}) {
      for (int64_t kernel : {1, 2, 3, 5}) {
        for (int64_t stride : {1, 2}) {
          for (int64_t dilation : {1, 2}) {
            Conv2DGeometry g = {1 + number % 2,
                                9,
                                11,
                                1 + number % 7,
                                kernel,
                                kernel,
                                stride,
                                stride,
                                dilation,
                                dilation,
                                0,
                                0,
                                0,
                                0};
            CHECK_TRUE(SetOutput(padding, &g), "geometry");
            const int64_t group_sizes[] = {-1, 0, 32};
            CheckCase(format, 1 + number % 5 * 9, group_sizes[number % 3], g, pool, &random);
            ++number;
          }
        }
      }
    }
    // More outputs than a slab, and sides of their own.
    Conv2DGeometry g = {1, 20, 19, 5, 3, 1, 1, 2, 1, 1, 0, 0, 0, 0};
    CHECK_TRUE(SetOutput(Padding::kSame, &g), "geometry");
    CheckCase(format, 40, 0, g, pool, &random);
    Conv2DGeometry wide = {1, 18, 17, 4, 1, 3, 1, 1, 1, 1, 0, 0, 0, 0};
    CHECK_TRUE(SetOutput(Padding::kSame, &wide), "geometry");
    CheckCase(format, 33, 0, wide, pool, &random);
  }
}

// One image that is not finite leaves the other alone.
void CheckNotFinite() {
  Random random(kSeed);
  const TestMatrix matrix(Format::kT5, 4, 9, 0, &random);
  Conv2DGeometry g = {2, 3, 3, 1, 3, 3, 1, 1, 1, 1, 0, 0, 0, 0};
  CHECK_TRUE(SetOutput(Padding::kSame, &g), "geometry");
  std::vector<float> x(18, 1.0f);
  x[4] = std::numeric_limits<float>::infinity();
  for (const char* level : kCpuLevels) {
    const std::vector<float> y =
        RunConv(matrix, g, x, {nullptr, Activation::kRelu}, Activations::kInt8, level, nullptr);
    for (size_t i = 0; i < y.size(); ++i) CHECK_EQUAL(std::isnan(y[i]), i < y.size() / 2, level);
  }
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::ThreadPool pool(3);
  tfmot_ternary::CheckGeometry();
  tfmot_ternary::CheckSizes(&pool);
  tfmot_ternary::CheckNotFinite();
  return tfmot_ternary::Finish("conv2d_test");
}
