#include "custom_ops/tflite/flexbuffer.h"

#include <cstring>
#include <utility>

namespace tfmot_ternary {
namespace {

// The type number of a value is the upper six bits of its type byte; the lower two are the base-2
// logarithm of the width of what an offset leads to.
enum FlexType : uint8_t {
  kInt = 1,
  kUInt = 2,
  kFloat = 3,
  kKey = 4,
  kString = 5,
  kIndirectInt = 6,
  kIndirectUInt = 7,
  kIndirectFloat = 8,
  kMap = 9,
  kBool = 26,
};

// Far more options than any op has; bounds the work that a hostile buffer can ask for.
constexpr uint64_t kMaxEntries = 256;

// The bytes of a FlexBuffer with reads that know the end. Positions are offsets from its start.
class Bytes {
 public:
  Bytes(const void* data, size_t size) : data_(static_cast<const uint8_t*>(data)), size_(size) {}

  size_t size() const { return size_; }
  uint8_t operator[](size_t position) const { return data_[position]; }
  const char* Text(size_t position) const {
    return reinterpret_cast<const char*>(data_ + position);
  }

  bool Contains(size_t position, uint64_t count) const {
    return position <= size_ && count <= size_ - position;
  }

  // Little-endian number of 1, 2, 4 or 8 bytes.
  bool Unsigned(size_t position, int width, uint64_t* out) const {
    if (!Contains(position, static_cast<uint64_t>(width))) return false;
    uint64_t value = 0;
    for (int i = width - 1; i >= 0; --i) value = value << 8 | data_[position + i];
    *out = value;
    return true;
  }

  bool Signed(size_t position, int width, int64_t* out) const {
    uint64_t value;
    if (!Unsigned(position, width, &value)) return false;
    const int unused = 64 - 8 * width;
    // Two's complement, widened by the sign bit of `width` bytes.
    const uint64_t sign = uint64_t{1} << (63 - unused);
    if (unused > 0 && (value & sign) != 0) value |= ~uint64_t{0} << (64 - unused);
    std::memcpy(out, &value, sizeof(value));
    return true;
  }

  // IEEE number of 4 or 8 bytes.
  bool Real(size_t position, int width, double* out) const {
    uint64_t bits;
    if (!Unsigned(position, width, &bits)) return false;
    if (width == 8) {
      std::memcpy(out, &bits, sizeof(*out));
      return true;
    }
    const uint32_t low = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &low, sizeof(value));
    *out = value;
    return true;
  }

  // Offsets point backwards from where they are stored.
  bool Follow(size_t position, int width, size_t* out) const {
    uint64_t offset;
    if (!Unsigned(position, width, &offset) || offset > position) return false;
    *out = position - static_cast<size_t>(offset);
    return true;
  }

  // Whether a null ends the text at `position` before the buffer does.
  bool IsTerminated(size_t position) const {
    return position < size_ && std::memchr(data_ + position, 0, size_ - position) != nullptr;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

constexpr char kTruncated[] = "expected a whole FlexBuffer, got one that is truncated or damaged";

const char* ReadValue(const Bytes& bytes, size_t slot, int width, uint8_t type_byte,
                      FlexBufferMap::Entry* entry) {
  const int target_width = 1 << (type_byte & 3);
  size_t target = slot;
  entry->integer = 0;
  entry->real = 0.0;
  entry->text = nullptr;
  switch (type_byte >> 2) {
    case kIndirectInt:
      if (!bytes.Follow(slot, width, &target)) return kTruncated;
      entry->kind = FlexBufferMap::Kind::kInteger;
      return bytes.Signed(target, target_width, &entry->integer) ? nullptr : kTruncated;
    case kInt:
      entry->kind = FlexBufferMap::Kind::kInteger;
      return bytes.Signed(slot, width, &entry->integer) ? nullptr : kTruncated;
    case kIndirectUInt:
    case kUInt:
    case kBool: {
      const bool indirect = type_byte >> 2 == kIndirectUInt;
      if (indirect && !bytes.Follow(slot, width, &target)) return kTruncated;
      uint64_t value;
      if (!bytes.Unsigned(target, indirect ? target_width : width, &value)) return kTruncated;
      if (value > static_cast<uint64_t>(INT64_MAX)) {
        return "expected integers below 2^63, got a larger one";
      }
      const bool boolean = type_byte >> 2 == kBool;
      entry->kind = boolean ? FlexBufferMap::Kind::kBoolean : FlexBufferMap::Kind::kInteger;
      entry->integer = boolean ? value != 0 : static_cast<int64_t>(value);
      return nullptr;
    }
    case kFloat:
    case kIndirectFloat: {
      const bool indirect = type_byte >> 2 == kIndirectFloat;
      if (indirect && !bytes.Follow(slot, width, &target)) return kTruncated;
      const int real_width = indirect ? target_width : width;
      if (real_width != 4 && real_width != 8) {
        return "expected real numbers of 32 or 64 bits, got another width";
      }
      entry->kind = FlexBufferMap::Kind::kReal;
      return bytes.Real(target, real_width, &entry->real) ? nullptr : kTruncated;
    }
    case kKey:
      if (!bytes.Follow(slot, width, &target) || !bytes.IsTerminated(target)) return kTruncated;
      entry->kind = FlexBufferMap::Kind::kString;
      entry->text = bytes.Text(target);
      return nullptr;
    case kString: {
      uint64_t length;
      if (!bytes.Follow(slot, width, &target) || target < static_cast<size_t>(target_width) ||
          !bytes.Unsigned(target - target_width, target_width, &length) ||
          !bytes.Contains(target, length) ||
          !bytes.Contains(target + static_cast<size_t>(length), 1) ||
          bytes[target + static_cast<size_t>(length)] != 0) {
        return kTruncated;
      }
      if (std::strlen(bytes.Text(target)) != length) {
        return "expected text, got a string with a null byte inside";
      }
      entry->kind = FlexBufferMap::Kind::kString;
      entry->text = bytes.Text(target);
      return nullptr;
    }
    default:
      return "expected values that are numbers, booleans or strings, got another type";
  }
}

}  // namespace

const char* FlexBufferMap::Parse(const void* data, size_t size) {
  entries_.clear();
  const Bytes bytes(data, data == nullptr ? 0 : size);
  if (bytes.size() == 0) return "expected a FlexBuffer map, got no bytes";
  if (bytes.size() < 3) return kTruncated;

  // The end of the buffer: the root's value, its type byte, the width of the value.
  const int root_width = bytes[bytes.size() - 1];
  const uint8_t root_type = bytes[bytes.size() - 2];
  if (root_width != 1 && root_width != 2 && root_width != 4 && root_width != 8) return kTruncated;
  if (bytes.size() < 2 + static_cast<size_t>(root_width)) return kTruncated;
  if (root_type >> 2 != kMap) return "expected a FlexBuffer map, got another type";
  size_t values;
  if (!bytes.Follow(bytes.size() - 2 - static_cast<size_t>(root_width), root_width, &values)) {
    return kTruncated;
  }

  // Before the values of a map: where its keys are, the width of the keys' offsets, and its size.
  const int width = 1 << (root_type & 3);
  const size_t header = 3 * static_cast<size_t>(width);
  uint64_t key_width, count, key_count;
  size_t keys;
  if (values < header || !bytes.Follow(values - header, width, &keys) ||
      !bytes.Unsigned(values - 2 * static_cast<size_t>(width), width, &key_width) ||
      !bytes.Unsigned(values - static_cast<size_t>(width), width, &count)) {
    return kTruncated;
  }
  if (key_width != 1 && key_width != 2 && key_width != 4 && key_width != 8) return kTruncated;
  if (count > kMaxEntries) return "expected at most 256 options, got more";
  const size_t types = values + static_cast<size_t>(count) * static_cast<size_t>(width);
  if (!bytes.Contains(values, count * static_cast<uint64_t>(width)) ||
      !bytes.Contains(types, count) || keys < key_width ||
      !bytes.Unsigned(keys - static_cast<size_t>(key_width), static_cast<int>(key_width),
                      &key_count) ||
      key_count != count) {
    return kTruncated;
  }

  std::vector<Entry> entries;
  entries.reserve(static_cast<size_t>(count));
  for (size_t i = 0; i < count; ++i) {
    size_t key;
    if (!bytes.Follow(keys + i * static_cast<size_t>(key_width), static_cast<int>(key_width),
                      &key) ||
        !bytes.IsTerminated(key)) {
      return kTruncated;
    }
    Entry entry;
    entry.key = bytes.Text(key);
    const size_t slot = values + i * static_cast<size_t>(width);
    const char* error = ReadValue(bytes, slot, width, bytes[types + i], &entry);
    if (error != nullptr) return error;
    entries.push_back(entry);
  }
  entries_ = std::move(entries);
  return nullptr;
}

}  // namespace tfmot_ternary
