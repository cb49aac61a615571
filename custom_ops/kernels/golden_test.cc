// The vectors of tests/golden, which Python wrote, with ==.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/kernels/fully_connected.h"
#include "custom_ops/kernels/row.h"
#include "custom_ops/kernels/test_cpu.h"
#include "custom_ops/kernels/test_data.h"

namespace tfmot_ternary {
namespace {

// Relative to the workspace root, where `bazel test` starts the test.
constexpr const char* kFolder = "tests/golden/";

std::vector<uint8_t> Bytes(const std::string& hex) {
  std::vector<uint8_t> bytes(hex.size() / 2);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<uint8_t>(std::stoi(hex.substr(2 * i, 2), nullptr, 16));
  }
  return bytes;
}

// Signs, or integers with commas between them.
std::vector<int8_t> Codes(Format format, const std::string& signs) {
  std::vector<int8_t> codes;
  if (format == Format::kI8 || format == Format::kI4) {
    std::istringstream words(signs);
    std::string word;
    while (std::getline(words, word, ',')) codes.push_back(static_cast<int8_t>(std::stoi(word)));
    return codes;
  }
  for (char sign : signs) codes.push_back(sign == '+' ? 1 : sign == '-' ? -1 : 0);
  return codes;
}

int CheckPacking() {
  std::ifstream file(std::string(kFolder) + "packing.txt");
  std::string line;
  int rows = 0;
  int count;
  const UnpackKernel* table = UnpackKernels(&count);
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string token, signs, hex;
    int64_t k;
    words >> token >> k >> signs >> hex;
    Format format = Format::kT2;
    CHECK_TRUE(ParseFormat(token.c_str(), &format), line);
    const std::vector<uint8_t> packed = Bytes(hex);
    const std::vector<int8_t> codes = Codes(format, signs);
    CHECK_EQUAL(RowBytes(format, k), static_cast<int64_t>(packed.size()), line);
    CHECK_EQUAL(FindInvalidByte(format, packed.data(), k), -1, line);
    std::vector<uint8_t> repacked(packed.size());
    PackRow(format, codes, repacked.data());
    CHECK_TRUE(repacked == packed, line);
    for (int i = 0; i < count; ++i) {
      if (table[i].format != format || !Supported(table[i].cpu)) continue;
      std::vector<int8_t> unpacked(k);
      table[i].unpack(packed.data(), k, unpacked.data());
      CHECK_TRUE(unpacked == codes, std::string(table[i].name) + ": " + line);
    }
    ++rows;
  }
  return rows;
}

// The floats of a line "name word word ...".
std::vector<float> Floats(std::ifstream* file, const char* name) {
  std::string line, word;
  std::getline(*file, line);
  std::istringstream words(line);
  words >> word;
  CHECK_EQUAL(word, name, line);
  std::vector<float> values;
  while (words >> word) {
    const uint32_t bits = static_cast<uint32_t>(std::stoul(word, nullptr, 16));
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    values.push_back(value);
  }
  return values;
}

int CheckFullyConnected() {
  std::ifstream file(std::string(kFolder) + "fully_connected.txt");
  std::string line;
  int cases = 0;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string word, token, layout, activation;
    int64_t group_size, m, n, k;
    int has_bias;
    words >> word >> token >> layout >> group_size >> m >> n >> k >> activation >> has_bias;
    const std::vector<float> x = Floats(&file, "x");
    std::string packed_line;
    std::getline(file, packed_line);
    const std::vector<uint8_t> packed = Bytes(packed_line.substr(std::strlen("packed ")));
    const std::vector<float> scales = Floats(&file, "scales");
    const std::vector<float> bias = Floats(&file, "bias");
    const std::vector<float> expected = Floats(&file, "y");

    PackedWeights weights = {Format::kT2,          n,         k, packed.data(), scales.data(),
                             ScaleLayout::kTensor, group_size};
    CHECK_TRUE(ParseFormat(token.c_str(), &weights.format), line);
    if (layout == "channel") weights.layout = ScaleLayout::kChannel;
    if (layout == "group") weights.layout = ScaleLayout::kGroup;
    Epilogue epilogue = {has_bias != 0 ? bias.data() : nullptr, Activation::kNone};
    CHECK_TRUE(ParseActivation(activation.c_str(), &epilogue.activation), line);
    for (const char* level : kCpuLevels) {
      const Kernels kernels = KernelsAt(level, weights.format);
      Aligned<uint8_t> workspace(
          static_cast<int64_t>(FullyConnectedWorkspaceBytes(weights, m, Activations::kInt8, 1)));
      std::vector<float> y(m * n);
      FullyConnected(weights, x.data(), m, epilogue, Activations::kInt8, kernels, workspace.data(),
                     nullptr, y.data());
      for (int64_t i = 0; i < m * n; ++i) {
        CHECK_EQUAL(y[i], expected[i], line + " at " + level + ", output " + std::to_string(i));
      }
    }
    ++cases;
  }
  return cases;
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  const int rows = tfmot_ternary::CheckPacking();
  const int cases = tfmot_ternary::CheckFullyConnected();
  std::printf("%d packed rows, %d products\n", rows, cases);
  CHECK_EQUAL(rows, 95, "tests/golden/packing.txt has 5 formats of 19 rows");
  CHECK_EQUAL(cases, 35, "tests/golden/fully_connected.txt has 5 formats of 7 cases");
  return tfmot_ternary::Finish("golden_test");
}
