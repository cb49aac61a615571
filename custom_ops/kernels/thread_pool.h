// A fixed set of worker threads for one interpreter.
#ifndef TFMOT_TERNARY_KERNELS_THREAD_POOL_H_
#define TFMOT_TERNARY_KERNELS_THREAD_POOL_H_

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

namespace tfmot_ternary {

// The thread that calls ParallelFor works too, so a pool of num_threads starts num_threads - 1
// workers. Workers spin for some microseconds after a job, then sleep: an idle pool costs nothing.
// Where the system refuses a thread, the pool is smaller; num_threads() tells.
class ThreadPool {
 public:
  // fn(arg, task, worker): task in [0, tasks), worker in [0, num_threads()). Two calls that run at
  // the same time never share a worker index.
  using Task = void (*)(void* arg, int64_t task, int worker);

  explicit ThreadPool(int num_threads);  // values below 1 mean 1
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return worker_count_ + 1; }

  // Runs fn for every task and returns when all are done. Allocates nothing. Calls from several
  // threads take turns; a task must not call ParallelFor on its own pool.
  void ParallelFor(int64_t tasks, Task fn, void* arg);

 private:
  struct Worker {
    ThreadPool* pool;
    int index;
    pthread_t thread;
  };

  static void* WorkerMain(void* worker);
  void WorkerLoop(int index);
  bool RunOneTask(int index);
  bool HasWork() const { return (ticket_.load() & kRemainingMask) != 0; }

  static constexpr uint64_t kRemainingMask = 0xffffffffu;

  int worker_count_ = 0;
  std::unique_ptr<Worker[]> workers_;

  std::mutex caller_mutex_;  // one job at a time

  // The job. Written by the caller before ticket_ is stored, and stable while a task is unfinished.
  Task fn_ = nullptr;
  void* arg_ = nullptr;
  int64_t tasks_ = 0;

  // High half: number of the job. Low half: tasks not yet claimed.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> unfinished_{0};

  alignas(64) std::mutex mutex_;  // guards sleeping only
  std::condition_variable work_;
  std::condition_variable finished_;
  std::atomic<int> sleeping_{0};
  std::atomic<bool> caller_sleeping_{false};
  std::atomic<bool> stop_{false};
};

}  // namespace tfmot_ternary

#endif  // TFMOT_TERNARY_KERNELS_THREAD_POOL_H_
