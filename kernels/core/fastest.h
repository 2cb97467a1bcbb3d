// How long code takes on a machine that others use as well.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>

#include "absl/functional/function_ref.h"

namespace thinwire {

// Seconds of the fastest of `times` calls: the others measure the machine's other users. What body
// writes counts as read.
inline double FastestSeconds(int times, absl::FunctionRef<void()> body) {
  using Clock = std::chrono::steady_clock;
  double fastest = 1e30;
  for (int i = 0; i < times; ++i) {
    const Clock::time_point start = Clock::now();
    body();
    std::atomic_signal_fence(std::memory_order_seq_cst);
    fastest = std::min(fastest, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return fastest;
}

}  // namespace thinwire
