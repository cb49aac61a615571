// The FlexBuffer reader: what it reads, and that no damaged buffer makes it read outside.
#include "custom_ops/tflite/flexbuffer.h"

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/tflite/op_options.h"

namespace tfmot_ternary {
namespace {

// {"weight_format": "t2", "group_size": 128, "k": -70000, "tfl_fusable_op": true}, written by the
// FlexBuffers of the flatbuffers Python package.
const std::vector<uint8_t> kOptions = {
    0x77, 0x65, 0x69, 0x67, 0x68, 0x74, 0x5f, 0x66, 0x6f, 0x72, 0x6d, 0x61, 0x74, 0x00, 0x02,
    0x74, 0x32, 0x00, 0x67, 0x72, 0x6f, 0x75, 0x70, 0x5f, 0x73, 0x69, 0x7a, 0x65, 0x00, 0x6b,
    0x00, 0x74, 0x66, 0x6c, 0x5f, 0x66, 0x75, 0x73, 0x61, 0x62, 0x6c, 0x65, 0x5f, 0x6f, 0x70,
    0x00, 0x04, 0x1d, 0x13, 0x12, 0x32, 0x00, 0x05, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
    0x04, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x90, 0xee, 0xfe, 0xff, 0x01, 0x00, 0x00,
    0x00, 0x3d, 0x00, 0x00, 0x00, 0x06, 0x06, 0x6a, 0x14, 0x14, 0x26, 0x01,
};

// Parses a copy of exactly the right size, so that a sanitizer sees the first byte read outside.
// Returns the error text, or "" after reading everything that the entries promise.
std::string ParseCopy(const std::vector<uint8_t>& bytes) {
  std::unique_ptr<uint8_t[]> copy(new uint8_t[bytes.size()]);
  if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
  FlexBufferMap map;
  const char* error = map.Parse(copy.get(), bytes.size());
  CHECK_TRUE(error == nullptr || map.entries().empty(), "an error leaves no entries");
  size_t read = 0;
  for (const FlexBufferMap::Entry& entry : map.entries()) {
    read += std::strlen(entry.key) + (entry.text == nullptr ? 0 : std::strlen(entry.text));
  }
  CHECK_TRUE(read < (size_t{1} << 20), "texts end");

  // The same bytes as options of an op.
  OpOptions options;
  ErrorText text;
  const bool read_options =
      ReadOpOptions(copy.get(), bytes.size(), ~0u, kOptionWeightFormat, &options, &text);
  CHECK_TRUE(read_options == text.empty(), "an error has words");
  return error == nullptr ? "" : error;
}

void TestReads() {
  FlexBufferMap map;
  CHECK_TRUE(map.Parse(kOptions.data(), kOptions.size()) == nullptr, "golden");
  CHECK_EQUAL(map.entries().size(), size_t{4}, "golden");
  if (map.entries().size() != 4) return;
  using Kind = FlexBufferMap::Kind;
  const auto& e = map.entries();  // sorted by key, as FlexBuffers store maps
  CHECK_EQUAL(std::string(e[0].key) == "group_size", true, e[0].key);
  CHECK_EQUAL(e[0].integer, int64_t{128}, "group_size");
  CHECK_EQUAL(std::string(e[1].key) == "k", true, e[1].key);
  CHECK_EQUAL(e[1].integer, int64_t{-70000}, "k");
  CHECK_TRUE(e[1].kind == Kind::kInteger, "k");
  CHECK_EQUAL(std::string(e[2].key) == "tfl_fusable_op", true, e[2].key);
  CHECK_TRUE(e[2].kind == Kind::kBoolean && e[2].integer == 1, "tfl_fusable_op");
  CHECK_EQUAL(std::string(e[3].key) == "weight_format", true, e[3].key);
  CHECK_TRUE(e[3].kind == Kind::kString && std::strcmp(e[3].text, "t2") == 0, "weight_format");
}

void TestRefuses() {
  CHECK_TRUE(!ParseCopy({}).empty(), "no bytes");
  FlexBufferMap map;
  CHECK_TRUE(map.Parse(nullptr, 7) != nullptr, "null");
  for (size_t size = 0; size < kOptions.size(); ++size) {
    const std::vector<uint8_t> head(kOptions.begin(), kOptions.begin() + size);
    CHECK_TRUE(!ParseCopy(head).empty(), "first " + std::to_string(size) + " bytes");
  }
  // Without its beginning the buffer lacks a key, which offsets still point to.
  for (size_t cut = 1; cut < kOptions.size(); ++cut) {
    const std::vector<uint8_t> tail(kOptions.begin() + cut, kOptions.end());
    CHECK_TRUE(!ParseCopy(tail).empty(), "last bytes from " + std::to_string(cut));
  }
}

// Whatever comes out, nothing is read outside and nothing crashes.
void TestDamage() {
  for (size_t place = 0; place < kOptions.size(); ++place) {
    for (int value = 0; value < 256; ++value) {
      std::vector<uint8_t> changed = kOptions;
      changed[place] = static_cast<uint8_t>(value);
      ParseCopy(changed);
    }
  }
  uint64_t state = 20251120;
  const auto random = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  };
  for (int round = 0; round < 200000; ++round) {
    std::vector<uint8_t> changed = kOptions;
    if (round % 2 == 0) {  // several bytes, mostly in the offsets and types at the end
      for (uint32_t i = random() % 6; i < 6; ++i) {
        changed[changed.size() - 1 - random() % 45] = static_cast<uint8_t>(random());
      }
    } else {  // short buffers of small numbers, with the end of a map
      changed.assign(random() % 40, 0);
      for (uint8_t& byte : changed) byte = static_cast<uint8_t>(random() % 24);
      const uint8_t end[] = {static_cast<uint8_t>(random() % 24),
                             static_cast<uint8_t>(9 << 2 | random() % 4),
                             static_cast<uint8_t>(1 << random() % 4)};
      changed.insert(changed.end(), end, end + 3);
    }
    ParseCopy(changed);
  }
}

// {"amplitude": 1.5, "epsilon": 1e-5}: 32 bits in place, and 64 bits behind an offset.
void TestRealOptions() {
  const std::vector<uint8_t> bytes = {
      0x61, 0x6d, 0x70, 0x6c, 0x69, 0x74, 0x75, 0x64, 0x65, 0x00, 0x65, 0x70, 0x73,
      0x69, 0x6c, 0x6f, 0x6e, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf1, 0x68,
      0xe3, 0x88, 0xb5, 0xf8, 0xe4, 0x3e, 0x02, 0x21, 0x18, 0x00, 0x03, 0x00, 0x00,
      0x00, 0x01, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc0, 0x3f,
      0x1c, 0x00, 0x00, 0x00, 0x0e, 0x23, 0x0a, 0x26, 0x01};
  OpOptions options;
  ErrorText error;
  CHECK_TRUE(ReadOpOptions(bytes.data(), bytes.size(), ~0u, kOptionEpsilon, &options, &error),
             error.c_str());
  CHECK_EQUAL(options.amplitude, 1.5f, "amplitude");
  CHECK_EQUAL(options.epsilon, 1e-5f, "epsilon");
  for (size_t place = 0; place < bytes.size(); ++place) {
    for (int value = 0; value < 256; ++value) {
      std::vector<uint8_t> changed = bytes;
      changed[place] = static_cast<uint8_t>(value);
      ParseCopy(changed);
    }
  }
}

void TestOptions() {
  OpOptions options;
  ErrorText error;
  const uint32_t all = ~0u;
  CHECK_TRUE(!ReadOpOptions(kOptions.data(), kOptions.size(), all, 0, &options, &error), "k < 0");
  CHECK_TRUE(std::strstr(error.c_str(), "got the integer -70000") != nullptr, error.c_str());

  std::vector<uint8_t> positive = kOptions;
  positive[68] = 70, positive[69] = positive[70] = positive[71] = 0;
  ErrorText none;
  CHECK_TRUE(
      ReadOpOptions(positive.data(), positive.size(), all, kOptionWeightFormat, &options, &none),
      none.c_str());
  CHECK_EQUAL(options.k, int64_t{70}, "k");
  CHECK_EQUAL(options.group_size, int64_t{128}, "group_size");
  CHECK_TRUE(options.format == Format::kT2, "weight_format");

  ErrorText missing;
  CHECK_TRUE(
      !ReadOpOptions(positive.data(), positive.size(), all, kOptionPadding, &options, &missing),
      "padding");
  CHECK_TRUE(std::strstr(missing.c_str(), "expected option padding") != nullptr, missing.c_str());
  ErrorText unknown;
  CHECK_TRUE(
      !ReadOpOptions(positive.data(), positive.size(), kOptionWeightFormat, 0, &options, &unknown),
      "group_size");
  CHECK_TRUE(std::strstr(unknown.c_str(), "got \"group_size\"") != nullptr, unknown.c_str());
}

void TestErrorText() {
  ErrorText error;
  CHECK_TRUE(error.empty(), "new");
  CHECK_TRUE(!error.Set("a\n%s", "\xc0\x7f z"), "returns false");
  CHECK_TRUE(std::strcmp(error.c_str(), "a??? z") == 0, error.c_str());
  error.Set("%s", std::string(1000, 'x').c_str());
  CHECK_TRUE(std::strlen(error.c_str()) < 400, "cut");
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::TestReads();
  tfmot_ternary::TestRefuses();
  tfmot_ternary::TestDamage();
  tfmot_ternary::TestOptions();
  tfmot_ternary::TestRealOptions();
  tfmot_ternary::TestErrorText();
  return tfmot_ternary::Finish("flexbuffer_test");
}
