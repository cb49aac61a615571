// The thread pool: every task once, worker indices never shared, sleeping and waking, many pools.
#include "custom_ops/kernels/thread_pool.h"

#include <pthread.h>
#include <time.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/kernels/check.h"

namespace tfmot_ternary {
namespace {

void Sleep(int64_t microseconds) {
  const timespec time = {0, static_cast<long>(microseconds * 1000)};
  nanosleep(&time, nullptr);
}

struct Job {
  std::vector<std::atomic<int>> runs;
  std::vector<std::atomic<int>> busy;
  std::atomic<int> shared{0};
  int64_t task_microseconds;

  Job(int64_t tasks, int threads, int64_t microseconds)
      : runs(tasks), busy(threads), task_microseconds(microseconds) {}

  static void Run(void* arg, int64_t task, int worker) {
    Job& job = *static_cast<Job*>(arg);
    if (job.busy[worker].fetch_add(1) != 0) job.shared.fetch_add(1);
    job.runs[task].fetch_add(1);
    if (job.task_microseconds > 0) Sleep(job.task_microseconds);
    job.busy[worker].fetch_sub(1);
  }
};

void CheckJob(ThreadPool* pool, int64_t tasks, int64_t task_microseconds) {
  Job job(tasks, pool->num_threads(), task_microseconds);
  pool->ParallelFor(tasks, Job::Run, &job);
  int64_t once = 0;
  for (const std::atomic<int>& runs : job.runs) once += runs.load() == 1 ? 1 : 0;
  const std::string context = std::to_string(pool->num_threads()) + " threads";
  CHECK_EQUAL(once, tasks, context);
  CHECK_EQUAL(job.shared.load(), 0, context);
}

void CheckCounts() {
  for (int threads : {-1, 0, 1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK_EQUAL(pool.num_threads(), threads < 1 ? 1 : threads, "threads");
    for (int64_t tasks : {0, 1, 2, 3, 7, 1000}) CheckJob(&pool, tasks, 0);
  }
}

// Jobs close together (workers spin) and far apart (workers sleep), short and long tasks.
void CheckRhythm() {
  ThreadPool pool(3);
  for (int i = 0; i < 3000; ++i) CheckJob(&pool, 1 + i % 9, 0);
  for (int i = 0; i < 20; ++i) {
    Sleep(1000);
    CheckJob(&pool, 5, i % 2 == 0 ? 0 : 300);
  }
}

// Tasks that need two threads at once show that the work really runs in parallel.
struct Meeting {
  std::atomic<int> arrived{0};
  static void Run(void* arg, int64_t /*task*/, int /*worker*/) {
    Meeting& meeting = *static_cast<Meeting*>(arg);
    meeting.arrived.fetch_add(1);
    while (meeting.arrived.load() < 2) Sleep(10);
  }
};

void CheckParallel() {
  ThreadPool pool(2);
  for (int i = 0; i < 50; ++i) {
    Meeting meeting;
    pool.ParallelFor(2, Meeting::Run, &meeting);
    CHECK_EQUAL(meeting.arrived.load(), 2, "meeting");
  }
}

void* UseOwnPool(void* /*arg*/) {
  ThreadPool pool(2);
  for (int i = 0; i < 500; ++i) CheckJob(&pool, 4, 0);
  return nullptr;
}

void* UseSharedPool(void* pool) {
  for (int i = 0; i < 500; ++i) CheckJob(static_cast<ThreadPool*>(pool), 4, 0);
  return nullptr;
}

void CheckCallers() {
  pthread_t threads[3];
  for (pthread_t& thread : threads) pthread_create(&thread, nullptr, UseOwnPool, nullptr);
  for (pthread_t& thread : threads) pthread_join(thread, nullptr);
  ThreadPool pool(3);
  for (pthread_t& thread : threads) pthread_create(&thread, nullptr, UseSharedPool, &pool);
  for (pthread_t& thread : threads) pthread_join(thread, nullptr);
}

}  // namespace
}  // namespace tfmot_ternary

int main() {
  tfmot_ternary::CheckCounts();
  tfmot_ternary::CheckRhythm();
  tfmot_ternary::CheckParallel();
  tfmot_ternary::CheckCallers();
  return tfmot_ternary::Finish("thread_pool_test");
}
