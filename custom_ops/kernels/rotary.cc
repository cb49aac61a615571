#include "custom_ops/kernels/rotary.h"

#include <algorithm>
#include <cstring>

#include "custom_ops/kernels/product.h"

namespace tfmot_ternary {
namespace {

// Values from which a task is worth a thread's attention: some microseconds of work.
constexpr int64_t kValuesPerTask = 16384;

// Pairs whose cosines and sines are kept at once, on the stack.
constexpr int64_t kPiecePairs = 256;

struct RotaryJob {
  const RotaryProblem& problem;
  const float* x;
  int64_t rows;
  int64_t per_task;
  const FusedFunctions& functions;
  float* out;
};

float PositionOf(const RotaryProblem& problem, int64_t t) {
  const int32_t* positions = problem.positions;
  return static_cast<float>(problem.position_per_row ? positions[t] : positions[0] + t);
}

void RotateRow(const RotaryJob& job, int64_t row) {
  const RotaryProblem& problem = job.problem;
  const int64_t pairs = problem.pairs;
  const int64_t values = problem.heads * problem.width;
  const float* x = job.x + row * values;
  float* out = job.out + row * values;
  const float position = PositionOf(problem, row % problem.length);
  alignas(64) float cosines[kPiecePairs], sines[kPiecePairs];
  for (int64_t begin = 0; begin < pairs; begin += kPiecePairs) {
    const int64_t count = std::min(kPiecePairs, pairs - begin);
    job.functions.waves(problem.inverse_frequencies + begin, count, position, problem.amplitude,
                        cosines, sines);
    const bool in_pairs = problem.input_layout == PairLayout::kPairs;
    const bool out_pairs = problem.output_layout == PairLayout::kPairs;
    const int64_t first = in_pairs ? 2 * begin : begin;
    const int64_t second = in_pairs ? first + 1 : pairs + begin;
    const int64_t out_first = out_pairs ? 2 * begin : begin;
    const int64_t out_second = out_pairs ? out_first + 1 : pairs + begin;
    for (int64_t i = 0; i < values; i += problem.width) {
      job.functions.rotate(x + i + first, x + i + second, count, problem.input_layout, cosines,
                           sines, problem.output_layout, out + i + out_first, out + i + out_second);
    }
  }
  const int64_t rest = problem.width - 2 * pairs;
  if (rest == 0) return;
  for (int64_t i = 2 * pairs; i < values; i += problem.width) {
    std::memcpy(out + i, x + i, static_cast<size_t>(rest) * sizeof(float));
  }
}

void RotateRows(void* arg, int64_t task, int /*worker*/) {
  const RotaryJob& job = *static_cast<const RotaryJob*>(arg);
  const int64_t end = std::min(job.rows, (task + 1) * job.per_task);
  for (int64_t row = task * job.per_task; row < end; ++row) RotateRow(job, row);
}

}  // namespace

void Rotary(const RotaryProblem& problem, const float* x, const FusedFunctions& functions,
            ThreadPool* pool, float* out) {
  const int64_t rows = problem.batch * problem.length;
  const int64_t values = problem.heads * problem.width;
  if (rows == 0 || values == 0) return;
  RotaryJob job = {problem, x, rows, std::max<int64_t>(1, kValuesPerTask / values), functions, out};
  RunTasks(pool, DivideUp(rows, job.per_task), RotateRows, &job);
}

}  // namespace tfmot_ternary
