// Threads that split loops of CPU kernels.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace thinwire {

// A fixed set of threads that run one loop at a time. The calling thread is one of them, so a pool
// of size 1 has no thread of its own and costs nothing. Workers wait for the next loop by spinning
// for some microseconds (a decode step issues a loop every few microseconds) and then sleep; a loop
// never waits for a worker that has not begun to help. Thread-compatible: one caller at a time.
// Loops do not nest.
class ThreadPool {
 public:
  // num_threads >= 1.
  explicit ThreadPool(int num_threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int num_threads() const { return num_threads_; }

  // Calls body(begin, end) over a partition of [0, num_items) into at most num_threads()
  // consecutive ranges of at least `grain` items (the last may be shorter), and returns when all
  // are done. What a body writes is visible to the caller afterwards. The partition depends on the
  // arguments and the pool's size only.
  void ParallelFor(int64_t num_items, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> body);

  // Calls body(item) once for each of [0, num_items), handing out items to threads as they become
  // free: for loops whose items cost unequally. Order and thread are unspecified.
  void ParallelForDynamic(int64_t num_items, absl::FunctionRef<void(int64_t item)> body);

  // Index in [0, num_threads()) of the pool thread that runs the caller; 0 outside of loops. For
  // per-thread scratch.
  static int CurrentThread();

 private:
  struct State;
  const int num_threads_;
  std::unique_ptr<State> state_;
};

}  // namespace thinwire
