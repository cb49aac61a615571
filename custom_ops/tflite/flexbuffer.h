// A FlexBuffer map of names to numbers, booleans and strings: the form in which op options arrive.
//
// Reads the format described in FlatBuffers' documentation of FlexBuffers, and of it only what op
// options use. Every offset is checked against the buffer, so that malformed bytes give an error.
#ifndef TFMOT_TERNARY_TFLITE_FLEXBUFFER_H_
#define TFMOT_TERNARY_TFLITE_FLEXBUFFER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tfmot_ternary {

class FlexBufferMap {
 public:
  enum class Kind : uint8_t { kInteger, kBoolean, kString, kReal };

  struct Entry {
    const char* key;  // null-terminated, inside the buffer
    Kind kind;
    int64_t integer;   // kInteger; kBoolean as 0 or 1
    double real;       // kReal
    const char* text;  // kString: null-terminated, inside the buffer, without a null inside
  };

  // Reads `size` bytes at `data`, which must outlive the map. Returns null, or what is wrong, as a
  // string that lives forever; the map is then empty.
  const char* Parse(const void* data, size_t size);

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_TFLITE_FLEXBUFFER_H_
