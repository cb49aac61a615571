#include "custom_ops/kernels/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tfmot_ternary {
namespace {

// Turns of the waiting loop before a thread sleeps: about 200 microseconds where a pause takes 40
// cycles. Longer than what lies between two products of a graph (the quantization of a long prompt
// takes 20, its normalization more), because a sleeper comes too late for a product of less than
// about 50 microseconds.
constexpr int kSpinTurns = 20000;

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
  shares_ = std::make_unique<Share[]>(num_threads);
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
  unfinished_.store(tasks);
  const uint64_t job = job_.load() + 1;
  const int64_t threads = num_threads();
  for (int64_t i = 0; i < threads; ++i) {
    const int64_t end = (i + 1) * tasks / threads;
    shares_[i].end = end;
    shares_[i].ticket.store((job << 32) | static_cast<uint64_t>(end - i * tasks / threads));
  }
  job_.store(job);
  // Sequentially consistent with the worker's "++sleeping_, then look at job_": one of the two
  // sees the other.
  if (sleeping_.load() != 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    work_.notify_all();
  }
  RunShares(0);
  for (int turn = 0; turn < kSpinTurns; ++turn) {
    if (unfinished_.load() == 0) return;
    Pause();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  caller_sleeping_.store(true);
  finished_.wait(lock, [this] { return unfinished_.load() == 0; });
  caller_sleeping_.store(false);
}

void ThreadPool::RunShares(int index) {
  const int threads = num_threads();
  for (int i = 0; i < threads; ++i) {
    Share* share = &shares_[(index + i) % threads];
    while (RunOneTask(share, index)) {
    }
  }
}

bool ThreadPool::RunOneTask(Share* share, int index) {
  uint64_t ticket = share->ticket.load();
  do {
    if ((ticket & kRemainingMask) == 0) return false;
  } while (!share->ticket.compare_exchange_weak(ticket, ticket - 1));
  // The claimed task is unfinished, so the job's members stay as they are.
  const int64_t task = share->end - static_cast<int64_t>(ticket & kRemainingMask);
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
  uint64_t seen = 0;
  const auto awake = [this, &seen] { return job_.load() != seen || stop_.load(); };
  for (;;) {
    for (int turn = 0; turn < kSpinTurns && !awake(); ++turn) Pause();
    if (!awake()) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_.fetch_add(1);
      work_.wait(lock, awake);
      sleeping_.fetch_sub(1);
    }
    if (stop_.load()) return;
    seen = job_.load();
    RunShares(index);
  }
}

}  // namespace tfmot_ternary
