// The keys and values of one attention layer, kept between calls, in the order the kernels read.
//
// Keys lie in blocks of 16 positions: for each head and block, all 16 values of dimension 0, then
// of dimension 1, and so on, so that the scores of 16 positions fill one vector without a sum
// across its lanes. Values lie in rows of the padded dimension. "int8" keeps keys as code + 128,
// four dimensions of a position side by side (what an int8 dot product of four takes), values as
// codes, and a scale for each head and position of both.
#ifndef TFMOT_TERNARY_KERNELS_ATTENTION_CACHE_H_
#define TFMOT_TERNARY_KERNELS_ATTENTION_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

namespace tfmot_ternary {

enum class CacheType : uint8_t { kFloat32, kFloat16, kInt8 };

bool ParseCacheType(const char* token, CacheType* type);

struct CacheShape {
  CacheType type;
  int64_t length;    // positions
  int64_t kv_heads;  // heads of keys and values
  int64_t head_dim;
};

inline bool operator==(const CacheShape& a, const CacheShape& b) {
  return a.type == b.type && a.length == b.length && a.kv_heads == b.kv_heads &&
         a.head_dim == b.head_dim;
}

class AttentionCache {
 public:
  static constexpr int64_t kLanes = 16;  // positions in a block of keys; also pads rows of values

  // All zeros, in pages that the system provides when they are first written. Null when it refuses.
  static std::unique_ptr<AttentionCache> Make(const CacheShape& shape);
  ~AttentionCache();
  AttentionCache(const AttentionCache&) = delete;
  AttentionCache& operator=(const AttentionCache&) = delete;

  const CacheShape& shape() const { return shape_; }
  int64_t padded_dim() const { return padded_dim_; }  // of a row of values
  // Elements of a block of keys: kLanes * head_dim, for int8 the dimension rounded up to four.
  int64_t key_block() const { return key_block_; }
  size_t bytes() const { return bytes_; }

  // Of one head: [blocks, key_block] and [blocks * kLanes, padded_dim] elements.
  template <typename T>
  T* Keys(int64_t head) const {
    return reinterpret_cast<T*>(keys_) + head * blocks_ * key_block_;
  }
  template <typename T>
  T* Values(int64_t head) const {
    return reinterpret_cast<T*>(values_) + head * blocks_ * kLanes * padded_dim_;
  }
  // int8 only, of one head: [blocks * kLanes].
  float* KeyScales(int64_t head) const { return key_scales_ + head * blocks_ * kLanes; }
  float* ValueScales(int64_t head) const { return value_scales_ + head * blocks_ * kLanes; }

 private:
  explicit AttentionCache(const CacheShape& shape);

  CacheShape shape_;
  int64_t blocks_, padded_dim_, key_block_;
  size_t bytes_ = 0;
  void* memory_ = nullptr;
  uint8_t* keys_ = nullptr;
  uint8_t* values_ = nullptr;
  float* key_scales_ = nullptr;
  float* value_scales_ = nullptr;
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_ATTENTION_CACHE_H_
