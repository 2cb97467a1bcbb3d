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

// A loop is a task that threads call until it has no work left; who does which part is open, so the
// caller never depends on a worker that sleeps or has lost its processor: when the caller finds no
// work left, it closes the loop and waits only for workers that are inside.
//
// `gate` holds the loop's generation, whether it is open, and how many workers are inside. A worker
// enters by compare-and-swap on an open gate, which orders its reads after the caller's writes; its
// leaving orders its writes before the caller's return.
struct ThreadPool::State {
  using Task = absl::FunctionRef<void()>;

  static constexpr uint64_t kInside = 1;
  static constexpr uint64_t kInsideMask = (uint64_t{1} << 16) - 1;
  static constexpr uint64_t kOpen = uint64_t{1} << 16;
  static constexpr int kGenerationShift = 17;

  static uint64_t Generation(uint64_t gate) { return gate >> kGenerationShift; }

  const Task* task = nullptr;
  std::atomic<uint64_t> gate{0};
  std::atomic<bool> stop{false};
  std::atomic<int> num_sleeping{0};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  bool running = false;

  // Waits for a loop after `seen` and returns its generation.
  uint64_t AwaitLoop(uint64_t seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
      const uint64_t generation = Generation(gate.load(std::memory_order_acquire));
      if (generation != seen) return generation;
      Pause();
    }
    std::unique_lock<std::mutex> lock(mutex);
    // Sequentially consistent with Publish: one of the two sees the other, so no wake-up is lost.
    num_sleeping.fetch_add(1);
    wake.wait(lock, [&] { return Generation(gate.load()) != seen; });
    num_sleeping.fetch_sub(1);
    return Generation(gate.load(std::memory_order_acquire));
  }

  // Joins the loop that is open now, if any.
  void Help() {
    uint64_t seen = gate.load(std::memory_order_relaxed);
    while ((seen & kOpen) != 0) {
      if (gate.compare_exchange_weak(seen, seen + kInside, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
        (*task)();
        gate.fetch_sub(kInside, std::memory_order_release);
        return;
      }
    }
  }

  void WorkerLoop(int thread) {
    current_thread = thread;
    uint64_t seen = 0;
    while (true) {
      seen = AwaitLoop(seen);
      if (stop.load(std::memory_order_relaxed)) return;
      Help();
    }
  }

  void Publish(uint64_t flags) {
    const uint64_t generation = Generation(gate.load(std::memory_order_relaxed)) + 1;
    gate.store(generation << kGenerationShift | flags);
    if (num_sleeping.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex);
      wake.notify_all();
    }
  }

  // Calls t on the caller and on workers that are free.
  void Run(Task t) {
    TW_CHECK(!running);
    running = true;
    task = &t;
    Publish(kOpen);
    t();
    gate.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spin = 0; (gate.load(std::memory_order_acquire) & kInsideMask) != 0; ++spin) {
      if (spin < kSpins) {
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
  state_->Publish(/*flags=*/0);
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
  ParallelForDynamic(num_ranges, [&](int64_t range) {
    body(num_items * range / num_ranges, num_items * (range + 1) / num_ranges);
  });
}

void ThreadPool::ParallelForDynamic(int64_t num_items, absl::FunctionRef<void(int64_t item)> body) {
  if (num_items <= 0) return;
  if (num_threads_ == 1 || num_items == 1) {
    for (int64_t item = 0; item < num_items; ++item) body(item);
    return;
  }
  std::atomic<int64_t> next{0};
  state_->Run([&] {
    while (true) {
      const int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= num_items) return;
      body(item);
    }
  });
}

}  // namespace thinwire
