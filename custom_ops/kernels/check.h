// Checks for the tests: a failure prints where, what and with which seed, and the test goes on.
#ifndef TFMOT_TERNARY_KERNELS_CHECK_H_
#define TFMOT_TERNARY_KERNELS_CHECK_H_

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <sstream>
#include <string>
#include <type_traits>

namespace tfmot_ternary {

// Failures of this process. Past the first 20 only the count grows.
inline std::atomic<int64_t>& Failures() {
  static std::atomic<int64_t> failures{0};
  return failures;
}

// Checks that this process has made.
inline std::atomic<int64_t>& Checks() {
  static std::atomic<int64_t> checks{0};
  return checks;
}

inline void Fail(const char* file, int line, const std::string& text, const std::string& context) {
  if (++Failures() > 20) return;
  std::fprintf(stderr, "%s:%d: %s%s%s\n", file, line, text.c_str(), context.empty() ? "" : "; ",
               context.c_str());
}

// Exit status of main.
inline int Finish(const char* test) {
  if (Failures() == 0) {
    std::printf("%s: passed\n", test);
    return 0;
  }
  std::fprintf(stderr, "%s: %lld checks failed\n", test, static_cast<long long>(Failures().load()));
  return 1;
}

// Small integers as numbers; floats with every digit that tells them apart.
template <typename T>
void Print(std::ostringstream* text, const T& value) {
  text->precision(9);
  if constexpr (std::is_arithmetic<T>::value) {
    *text << +value;
  } else {
    *text << value;
  }
}

template <typename A, typename B>
void CheckEqual(const char* file, int line, const char* what, const A& got, const B& expected,
                const std::string& context) {
  ++Checks();
  if (got == expected) return;
  std::ostringstream text;
  text << what << ": expected ";
  Print(&text, expected);
  text << ", got ";
  Print(&text, got);
  Fail(file, line, text.str(), context);
}

}  // namespace tfmot_ternary

#define CHECK_TRUE(condition, context)                                                            \
  do {                                                                                            \
    ++::tfmot_ternary::Checks();                                                                  \
    if (!(condition)) ::tfmot_ternary::Fail(__FILE__, __LINE__, "expected " #condition, context); \
  } while (false)

#define CHECK_EQUAL(got, expected, context) \
  ::tfmot_ternary::CheckEqual(__FILE__, __LINE__, #got, got, expected, context)

#endif  // TFMOT_TERNARY_KERNELS_CHECK_H_
