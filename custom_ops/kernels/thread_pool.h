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
  //
  // Each thread has a share of consecutive tasks, the same from call to call, and takes tasks of
  // other shares only when its own is empty: what a task reads and writes tends to be in the cache
  // of its core already (a line that another core has modified comes slower than one from memory).
  void ParallelFor(int64_t tasks, Task fn, void* arg);

 private:
  struct Worker {
    ThreadPool* pool;
    int index;
    pthread_t thread;
  };

  // Tasks of one thread.
  struct alignas(64) Share {
    // High half: number of the job. Low half: tasks not yet claimed.
    std::atomic<uint64_t> ticket{0};
    int64_t end = 0;
  };

  static void* WorkerMain(void* worker);
  void WorkerLoop(int index);
  void RunShares(int index);
  bool RunOneTask(Share* share, int index);

  static constexpr uint64_t kRemainingMask = 0xffffffffu;

  int worker_count_ = 0;
  std::unique_ptr<Worker[]> workers_;
  std::unique_ptr<Share[]> shares_;  // by worker index

  std::mutex caller_mutex_;  // one job at a time

  // The job. Written by the caller before the tickets are stored, and stable, like the ends of the
  // shares, while a task is unfinished.
  Task fn_ = nullptr;
  void* arg_ = nullptr;

  alignas(64) std::atomic<uint64_t> job_{0};  // its number, stored when all shares are
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
