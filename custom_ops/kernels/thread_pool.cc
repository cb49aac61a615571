#include "custom_ops/kernels/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tfmot_ternary {
namespace {

// Turns of the waiting loop before a thread sleeps: about 20 microseconds where a pause takes 40
// cycles. Longer than the gap between two ops of a graph, short against a time slice.
constexpr int kSpinTurns = 2000;

inline void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= 1) return;
  workers_ = std::make_unique<Worker[]>(num_threads - 1);
  for (int i = 0; i < num_threads - 1; ++i) {
    Worker& worker = workers_[i];
    worker.pool = this;
    worker.index = i + 1;
    if (pthread_create(&worker.thread, nullptr, &WorkerMain, &worker) != 0) break;
    ++worker_count_;
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
    work_.notify_all();
  }
  for (int i = 0; i < worker_count_; ++i) pthread_join(workers_[i].thread, nullptr);
}

void ThreadPool::ParallelFor(int64_t tasks, Task fn, void* arg) {
  if (tasks <= 0) return;
  std::lock_guard<std::mutex> one_job(caller_mutex_);
  if (worker_count_ == 0 || tasks == 1 || tasks > static_cast<int64_t>(kRemainingMask)) {
    for (int64_t task = 0; task < tasks; ++task) fn(arg, task, 0);
    return;
  }
  fn_ = fn;
  arg_ = arg;
  tasks_ = tasks;
  unfinished_.store(tasks);
  const uint64_t job = (ticket_.load() >> 32) + 1;
  ticket_.store((job << 32) | static_cast<uint64_t>(tasks));
  // Sequentially consistent with the worker's "++sleeping_, then look for work": one of the two
  // sees the other.
  if (sleeping_.load() != 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    work_.notify_all();
  }
  while (RunOneTask(0)) {
  }
  for (int turn = 0; turn < kSpinTurns; ++turn) {
    if (unfinished_.load() == 0) return;
    Pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeping_.store(true);
  finished_.wait(lock, [this] { return unfinished_.load() == 0; });
  caller_sleeping_.store(false);
}

bool ThreadPool::RunOneTask(int index) {
  uint64_t ticket = ticket_.load();
  do {
    if ((ticket & kRemainingMask) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1));
  // The claimed task is unfinished, so the job's members stay as they are.
  const int64_t task = tasks_ - static_cast<int64_t>(ticket & kRemainingMask);
  fn_(arg_, task, index);
  if (unfinished_.fetch_sub(1) == 1 && caller_sleeping_.load()) {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_.notify_one();
  }
  return true;
}

void* ThreadPool::WorkerMain(void* worker) {
  Worker* self = static_cast<Worker*>(worker);
  self->pool->WorkerLoop(self->index);
  return nullptr;
}

void ThreadPool::WorkerLoop(int index) {
  while (!stop_.load()) {
    while (RunOneTask(index)) {
    }
    bool found = false;
    for (int turn = 0; turn < kSpinTurns && !found; ++turn) {
      found = HasWork() || stop_.load();
      Pause();
    }
    if (found) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    sleeping_.fetch_add(1);
    work_.wait(lock, [this] { return HasWork() || stop_.load(); });
    sleeping_.fetch_sub(1);
  }
}

}  // namespace tfmot_ternary
