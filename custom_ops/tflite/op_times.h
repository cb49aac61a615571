// How long the ops take, by name: for a profile. Off, and then without cost, until it is started.
#ifndef TFMOT_TERNARY_TFLITE_OP_TIMES_H_
#define TFMOT_TERNARY_TFLITE_OP_TIMES_H_

#include <chrono>
#include <cstdint>

#include "custom_ops/tflite/export.h"

namespace tfmot_ternary {

// Counts the time from its birth to its end for the op called `name`, a string that stays.
class OpTimer {
 public:
  explicit OpTimer(const char* name);
  ~OpTimer();
  OpTimer(const OpTimer&) = delete;
  OpTimer& operator=(const OpTimer&) = delete;

 private:
  const char* name_;  // null: nothing is counted
  std::chrono::steady_clock::time_point start_;
};

}  // namespace tfmot_ternary

extern "C" {

// Forgets what was counted and begins to count, in all interpreters of the process.
TFMOT_TERNARY_EXPORT void TfmotTernaryStartOpTimes();

// Counts no more; what was counted stays readable.
TFMOT_TERNARY_EXPORT void TfmotTernaryStopOpTimes();

// The i-th op that has run: its name, the seconds of all its calls, and their number. Returns 0,
// and leaves the places alone, behind the last one.
TFMOT_TERNARY_EXPORT int TfmotTernaryReadOpTimes(int i, const char** name, double* seconds,
                                                 int64_t* calls);

}  // extern "C"

#endif  // TFMOT_TERNARY_TFLITE_OP_TIMES_H_
