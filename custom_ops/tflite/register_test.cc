// Registration from C++: a program with an OpResolver of its own, found by its weak symbol, and the
// ops that it was given, run on small weights that can be checked by hand.
#include "custom_ops/tflite/register.h"

#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "custom_ops/kernels/check.h"
#include "custom_ops/tflite/fake_interpreter.h"
#include "custom_ops/tflite/ops.h"
#include "third_party/tflite/c_api.h"

namespace tflite {

// Stands for the class of the same name: the ops reach it through one function alone.
class MutableOpResolver {
 public:
  __attribute__((visibility("default"))) void AddCustom(const char* name,
                                                        const TfLiteRegistration* registration,
                                                        int version);

  std::map<std::string, TfLiteRegistration> ops;
};

void MutableOpResolver::AddCustom(const char* name, const TfLiteRegistration* registration,
                                  int version) {
  CHECK_EQUAL(version, 1, name);
  ops[name] = *registration;
}

}  // namespace tflite

namespace tfmot_ternary {
namespace {

// {"weight_format": "t2"} as a FlexBuffer.
const std::vector<uint8_t> kT2Options = {
    'w',  'e', 'i', 'g',  'h',  't',  '_',  'f',  'o',  'r',  'm',  'a',  't',  0x00,
    0x02, 't', '2', 0x00, 0x01, 0x13, 0x01, 0x01, 0x01, 0x08, 0x14, 0x02, 0x24, 0x01,
};

// [2, 5] of t2, a row of 4 bytes: byte j holds the weight j, and byte 0 also weight 4 (bits 2, 3).
//   row 0: +1 +1 +1 +1 +1     row 1: -1 0 +1 0 -1     (padding: 0, which is code 1)
const uint8_t kPacked[2][4] = {{0x5a, 0x56, 0x56, 0x56}, {0x50, 0x55, 0x56, 0x55}};
const float kScales[2] = {0.5f, 2.0f};
const float kBias[2] = {1.0f, -1.0f};

const std::map<std::string, TfLiteRegistration>& Ops() {
  static const auto* ops = [] {
    tflite::MutableOpResolver resolver;
    TfmotTernaryRegisterOps(&resolver);
    return new std::map<std::string, TfLiteRegistration>(resolver.ops);
  }();
  return *ops;
}

void TestNames() {
  CHECK_EQUAL(Ops().size(), static_cast<size_t>(kOpCount), "ops");
  for (const char* name : {"fully_connected", "conv2d", "embedding_lookup", "unpack", "rms_norm",
                           "layer_norm", "activation", "rotary"}) {
    const std::string full = std::string("tfmot_ternary.") + name;
    CHECK_TRUE(Ops().count(full) == 1, full);
    if (Ops().count(full) == 0) continue;
    const TfLiteRegistration& op = Ops().at(full);
    CHECK_TRUE(op.init != nullptr && op.free != nullptr && op.prepare != nullptr &&
                   op.invoke != nullptr && op.custom_name == full,
               full);
  }
}

// x = [127, 0, 64, 1, 127] quantizes to itself: amax 127 makes the scale of the row 1.
void RunFullyConnected(int num_threads, int rows) {
  FakeInterpreter interpreter(Ops().at("tfmot_ternary.fully_connected"), num_threads);
  const int x = interpreter.AddTensor(kTfLiteFloat32, {rows, 5});
  const int packed = interpreter.AddTensor(kTfLiteUInt8, {2, 4}, kPacked);
  const int scales = interpreter.AddTensor(kTfLiteFloat32, {2}, kScales);
  const int bias = interpreter.AddTensor(kTfLiteFloat32, {2}, kBias);
  const int y = interpreter.AddTensor(kTfLiteFloat32, {1});
  interpreter.SetNode({x, packed, scales, bias}, y, kT2Options);
  CHECK_TRUE(interpreter.AllocateTensors(), interpreter.error);
  if (!interpreter.error.empty()) return;
  const float values[5] = {127, 0, 64, 1, 127};
  for (int row = 0; row < rows; ++row) {
    std::memcpy(interpreter.tensor(x)->data.f + 5 * row, values, sizeof(values));
  }
  for (int round = 0; round < 3; ++round) {
    CHECK_TRUE(interpreter.Invoke(), interpreter.error);
    CHECK_EQUAL(interpreter.tensor(y)->dims->data[0], rows, "rows of y");
    CHECK_EQUAL(interpreter.tensor(y)->dims->data[1], 2, "columns of y");
    for (int row = 0; row < rows; ++row) {
      const float* out = interpreter.tensor(y)->data.f + 2 * row;
      CHECK_EQUAL(out[0], 319 * 0.5f + 1, "row 0");  // 127 + 0 + 64 + 1 + 127
      CHECK_EQUAL(out[1], (-127 + 64 - 127) * 2.0f - 1, "row 1");
    }
  }
}

void TestThreads() {
  RunFullyConnected(1, 1);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([i] {
      for (int round = 0; round < 20; ++round) RunFullyConnected(1 + (i + round) % 3, 1 + round);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void TestErrors() {
  FakeInterpreter interpreter(Ops().at("tfmot_ternary.fully_connected"), 1);
  const int x = interpreter.AddTensor(kTfLiteFloat32, {3, 17});
  const int packed = interpreter.AddTensor(kTfLiteUInt8, {2, 4}, kPacked);
  const int scales = interpreter.AddTensor(kTfLiteFloat32, {2}, kScales);
  const int y = interpreter.AddTensor(kTfLiteFloat32, {1});
  interpreter.SetNode({x, packed, scales, 99, -7}, y, kT2Options);
  CHECK_TRUE(!interpreter.AllocateTensors(), "five inputs");
  CHECK_TRUE(interpreter.error == "tfmot_ternary.fully_connected: expected 3 to 4 inputs, got 5",
             interpreter.error);
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::TestNames();
  tfmot_ternary::TestThreads();
  tfmot_ternary::TestErrors();
  return tfmot_ternary::Finish("register_test");
}
