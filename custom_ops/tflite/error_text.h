// One error message of bounded length, formatted in place.
//
// Messages may quote bytes of a damaged model, and Python takes only UTF-8: whatever is not
// printable ASCII comes out as '?'.
#ifndef TFMOT_TERNARY_TFLITE_ERROR_TEXT_H_
#define TFMOT_TERNARY_TFLITE_ERROR_TEXT_H_

#include <cstdarg>
#include <cstdio>

namespace tfmot_ternary {

class ErrorText {
 public:
  ErrorText() { text_[0] = '\0'; }  // not the whole text: every Eval makes one

  bool empty() const { return text_[0] == '\0'; }
  const char* c_str() const { return text_; }

  // Sets the message, printf style; returns false, so that a check can end with it. Longer messages
  // are cut.
#if defined(__GNUC__)
  __attribute__((format(printf, 2, 3)))
#endif
  bool
  Set(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text_, sizeof(text_), format, arguments);
    va_end(arguments);
    for (char* c = text_; *c != '\0'; ++c) {
      if (*c < ' ' || *c > '~') *c = '?';
    }
    return false;
  }

 private:
  char text_[384];
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_ERROR_TEXT_H_
