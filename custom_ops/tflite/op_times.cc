#include "custom_ops/tflite/op_times.h"

#include <atomic>

namespace tfmot_ternary {
namespace {

// More than there are ops; times of further ones would be left out.
constexpr int kSlots = 32;

// Claimed by the first call of an op, and never given back.
struct Slot {
  std::atomic<const char*> name{nullptr};
  std::atomic<int64_t> nanoseconds{0};
  std::atomic<int64_t> calls{0};
};

Slot slots[kSlots];
std::atomic<bool> counting{false};

// The slot of that name (the same pointer), a free one if it has none; null when all are taken.
Slot* FindSlot(const char* name) {
  for (Slot& slot : slots) {
    const char* owner = slot.name.load(std::memory_order_relaxed);
    if (owner == nullptr &&
        slot.name.compare_exchange_strong(owner, name, std::memory_order_relaxed)) {
      return &slot;
    }
    if (owner == name) return &slot;
  }
  return nullptr;
}

}  // namespace

OpTimer::OpTimer(const char* name)
    : name_(counting.load(std::memory_order_relaxed) ? name : nullptr) {
  if (name_ != nullptr) start_ = std::chrono::steady_clock::now();
}

OpTimer::~OpTimer() {
  if (name_ == nullptr) return;
  const auto elapsed = std::chrono::steady_clock::now() - start_;
  Slot* slot = FindSlot(name_);
  if (slot == nullptr) return;
  slot->nanoseconds.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(),
                              std::memory_order_relaxed);
  slot->calls.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace tfmot_ternary

void TfmotTernaryStartOpTimes() {
  for (tfmot_ternary::Slot& slot : tfmot_ternary::slots) {
    slot.nanoseconds.store(0, std::memory_order_relaxed);
    slot.calls.store(0, std::memory_order_relaxed);
  }
  tfmot_ternary::counting.store(true, std::memory_order_relaxed);
}

void TfmotTernaryStopOpTimes() { tfmot_ternary::counting.store(false, std::memory_order_relaxed); }

int TfmotTernaryReadOpTimes(int i, const char** name, double* seconds, int64_t* calls) {
  if (i < 0 || i >= tfmot_ternary::kSlots) return 0;
  const tfmot_ternary::Slot& slot = tfmot_ternary::slots[i];
  const char* owner = slot.name.load(std::memory_order_relaxed);
  if (owner == nullptr) return 0;
  *name = owner;
  *seconds = 1e-9 * static_cast<double>(slot.nanoseconds.load(std::memory_order_relaxed));
  *calls = slot.calls.load(std::memory_order_relaxed);
  return 1;
}
