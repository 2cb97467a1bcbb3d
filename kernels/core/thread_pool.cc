#include "kernels/core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/core/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thinwire {
namespace {

thread_local int current_thread = 0;

// About 20 us on current machines: longer than the gap between two loops of a decode step, far
// shorter than a scheduler quantum.
constexpr int kSpins = 4000;

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

// One loop is one generation. The caller publishes `task`, then bumps `generation`; each worker
// runs the task with its index and bumps `num_done`. The release/acquire pairs on these two atomics
// order the task's reads and writes with the caller's.
struct ThreadPool::State {
  using Task = absl::FunctionRef<void(int thread)>;

  const Task* task = nullptr;
  std::atomic<uint64_t> generation{0};
  std::atomic<int> num_done{0};
  std::atomic<bool> stop{false};
  std::atomic<int> num_sleeping{0};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  bool running = false;

  void WorkerLoop(int thread) {
    current_thread = thread;
    uint64_t seen = 0;
    while (true) {
      int spins = 0;
      while (generation.load(std::memory_order_acquire) == seen && spins < kSpins) {
        Pause();
        ++spins;
      }
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        // Sequentially consistent with the caller's (generation bump, num_sleeping read): one of
        // the two sees the other, so a wake-up is never lost.
        num_sleeping.fetch_add(1);
        wake.wait(lock, [&] { return generation.load() != seen; });
        num_sleeping.fetch_sub(1);
      }
      ++seen;
      if (stop.load(std::memory_order_relaxed)) return;
      (*task)(thread);
      num_done.fetch_add(1, std::memory_order_release);
    }
  }

  void Publish() {
    generation.fetch_add(1);
    if (num_sleeping.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex);
      wake.notify_all();
    }
  }

  // Runs t(0) .. t(num_threads - 1), t(0) on the caller.
  void Run(Task t) {
    TW_CHECK(!running);
    running = true;
    task = &t;
    num_done.store(0, std::memory_order_relaxed);
    Publish();
    t(0);
    const int num_workers = static_cast<int>(workers.size());
    int spins = 0;
    while (num_done.load(std::memory_order_acquire) < num_workers) {
      if (++spins < kSpins) {
        Pause();
      } else {
        std::this_thread::yield();
      }
    }
    task = nullptr;
    running = false;
  }
};

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), state_(std::make_unique<State>()) {
  TW_CHECK_GE(num_threads, 1);
  for (int thread = 1; thread < num_threads; ++thread) {
    state_->workers.emplace_back([state = state_.get(), thread] { state->WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true, std::memory_order_relaxed);
  state_->Publish();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::CurrentThread() { return current_thread; }

void ThreadPool::ParallelFor(int64_t num_items, int64_t grain,
                             absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (num_items <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t num_ranges =
      std::min<int64_t>(num_threads_, std::max<int64_t>(num_items / grain, 1));
  if (num_ranges == 1) {
    body(0, num_items);
    return;
  }
  state_->Run([&](int thread) {
    if (thread >= num_ranges) return;
    const int64_t begin = num_items * thread / num_ranges;
    const int64_t end = num_items * (thread + 1) / num_ranges;
    body(begin, end);
  });
}

void ThreadPool::ParallelForDynamic(int64_t num_items, absl::FunctionRef<void(int64_t item)> body) {
  if (num_items <= 0) return;
  if (num_threads_ == 1 || num_items == 1) {
    for (int64_t item = 0; item < num_items; ++item) body(item);
    return;
  }
  std::atomic<int64_t> next{0};
  state_->Run([&](int) {
    while (true) {
      const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= num_items) return;
      body(item);
    }
  });
}

}  // namespace thinwire
