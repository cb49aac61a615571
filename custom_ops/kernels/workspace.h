// The caller's scratch memory, handed out front to back.
#ifndef TFMOT_TERNARY_KERNELS_WORKSPACE_H_
#define TFMOT_TERNARY_KERNELS_WORKSPACE_H_

#include <cstddef>
#include <cstdint>

namespace tfmot_ternary {

// Made from null, it only measures: the code that takes the pieces also says how much it needs.
class Workspace {
 public:
  static constexpr size_t kAlignment = 64;

  explicit Workspace(void* base) : base_(static_cast<uint8_t*>(base)) {}

  // `count` elements, aligned to 64 bytes; null while measuring.
  template <typename T>
  T* Take(int64_t count) {
    uint8_t* piece = base_ == nullptr ? nullptr : base_ + used_;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(piece);
  }

  size_t used() const { return used_; }

 private:
  uint8_t* base_;
  size_t used_ = 0;
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_WORKSPACE_H_
