#include "runtime/engine/step_watchdog.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace thinwire {
namespace {

constexpr absl::Duration kLongestNap = absl::Milliseconds(250);

int64_t NowNs() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

}  // namespace

StepWatchdog::StepWatchdog(absl::Duration limit, std::function<void(const absl::Status&)> on_hang)
    : limit_(limit), on_hang_(std::move(on_hang)), thread_([this] { Watch(); }) {}

StepWatchdog::~StepWatchdog() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
  }
  ends_.notify_one();
  thread_.join();
}

void StepWatchdog::Begin(int64_t step) {
  step_.store(step, std::memory_order_relaxed);
  began_ns_.store(NowNs(), std::memory_order_release);
}

void StepWatchdog::End() { began_ns_.store(0, std::memory_order_release); }

void StepWatchdog::Watch() {
  const auto nap = absl::ToChronoNanoseconds(std::min(kLongestNap, limit_ / 4));
  std::unique_lock<std::mutex> lock(mutex_);
  while (!ends_.wait_for(lock, nap, [this] { return ending_; })) {
    const int64_t began = began_ns_.load(std::memory_order_acquire);
    if (began == 0 || absl::Nanoseconds(NowNs() - began) < limit_) continue;
    on_hang_(absl::DeadlineExceededError(
        absl::StrCat("step ", step_.load(std::memory_order_relaxed), " has hung for ",
                     absl::FormatDuration(limit_), " in a call of the GPU's driver or of NCCL")));
    return;
  }
}

}  // namespace thinwire
