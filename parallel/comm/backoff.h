// How a rank waits for memory or a network to change: at full speed at first, then politely.
#pragma once

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/time/time.h"

namespace thinwire {

// One wait. The phases keep two ranks on two cores at microseconds, let more ranks than cores take
// turns, and cost idle ranks almost no processor time.
class Backoff {
 public:
  explicit Backoff(absl::Duration timeout) : timeout_(Bounded(timeout)) {}

  // Between two polls. False once `timeout` has passed since construction or the last Restart.
  bool Wait() {
    if (++polls_ < kFreePolls) return true;
    const auto now = Clock::now();
    if (polls_ == kFreePolls) start_ = now;
    const auto waited = now - start_;
    if (waited >= timeout_) return false;
    sleeping_ = waited >= kYielding;
    if (sleeping_) {
      // One hundredth of the wait so far: late by little, however long it takes.
      const Clock::duration nap = std::clamp<Clock::duration>(waited / 100, kMinNap, kMaxNap);
      std::this_thread::sleep_for(std::min<Clock::duration>(nap, timeout_ - waited));
    } else if (waited >= kSpinning) {
      sched_yield();
    }
    return true;
  }

  // There was progress: the timeout counts from here.
  void Restart() {
    polls_ = 0;
    sleeping_ = false;
  }

  // True now and then: time for checks that cost more than a poll.
  bool IsCheckDue() const { return sleeping_ || polls_ % 32 == 31; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int kFreePolls = 4;
  static constexpr auto kSpinning = std::chrono::microseconds(20);
  static constexpr auto kYielding = std::chrono::milliseconds(1);
  static constexpr auto kMinNap = std::chrono::microseconds(50);
  static constexpr auto kMaxNap = std::chrono::milliseconds(2);

  static std::chrono::nanoseconds Bounded(absl::Duration timeout) {
    return absl::ToChronoNanoseconds(
        std::clamp(timeout, absl::ZeroDuration(), absl::Hours(24 * 365)));
  }

  const std::chrono::nanoseconds timeout_;
  Clock::time_point start_;
  int64_t polls_ = 0;
  bool sleeping_ = false;
};

}  // namespace thinwire
