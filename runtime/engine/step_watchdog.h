// The last resort where a step hangs inside a call of a driver or a library, which has no bound.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace thinwire {

// Waits of ours end by themselves. A launch that waits for room in the GPU's queue, memory that is
// taken or freed while a kernel waits for another rank, or a call of NCCL do not. Begin and End
// cost a store each.
class StepWatchdog {
 public:
  // Calls `on_hang`, in a thread of its own and once, when a step has lasted longer than `limit`:
  // the caller's thread cannot be helped, so it should end the process.
  StepWatchdog(absl::Duration limit, std::function<void(const absl::Status&)> on_hang);
  ~StepWatchdog();

  StepWatchdog(const StepWatchdog&) = delete;
  StepWatchdog& operator=(const StepWatchdog&) = delete;

  void Begin(int64_t step);
  void End();

 private:
  void Watch();

  const absl::Duration limit_;
  const std::function<void(const absl::Status&)> on_hang_;
  std::atomic<int64_t> began_ns_ = 0;  // 0: no step is under way
  std::atomic<int64_t> step_ = 0;
  std::mutex mutex_;
  std::condition_variable ends_;
  bool ending_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace thinwire
