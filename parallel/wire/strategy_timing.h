// How long one layer half's exchange takes with a strategy, what it sends, and what it loses.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/strategy.h"

namespace thinwire {

struct StrategyTiming {
  double p50_us = 0.0;  // of calls, each as long as on the slowest rank
  double p99_us = 0.0;
  int64_t calls = 0;
  int64_t logical_bytes = 0;  // that an fp16 ring all-reduce would send, all ranks together
  int64_t wire_bytes = 0;     // sent by all ranks together
  double error = 0.0;         // of the sums: root mean square, in units of that of the exact sums
};

// Measures one strategy, a few calls at a time, so that several can take turns. Partial sums of
// num_rows x width elements of `dtype` become sums and, with token-owner, the next norm of the
// owners' rows reaches all ranks: normal variates in which every 61st channel is 20 times as large.
// On the CPU a call is timed from a barrier on. On a GPU up to 20 calls, each of other rows (256
// MiB of them at most), are one CUDA graph, and a call takes its share of that.
class StrategyTimer {
 public:
  // Collective over `tp`, which has several ranks and, like `stream`, outlives the timer. Makes
  // calls enough to know bytes and error, the latter of at most 256 rows on a GPU.
  static absl::StatusOr<StrategyTimer> Create(Communicator& tp, const WireOptions& options,
                                              int64_t num_rows, int64_t width, DType dtype,
                                              Stream& stream);
  StrategyTimer(StrategyTimer&&) noexcept;
  StrategyTimer& operator=(StrategyTimer&&) noexcept;
  ~StrategyTimer();

  // Collective: some calls more.
  absl::Status Sample();

  // Of all samples so far, at least one. The same on all ranks.
  StrategyTiming Timing() const;

 private:
  class State;
  explicit StrategyTimer(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

// Collective: samples until `duration` is over, at least one. The same result on all ranks.
absl::StatusOr<StrategyTiming> TimeStrategy(Communicator& tp, const WireOptions& options,
                                            int64_t num_rows, int64_t width, DType dtype,
                                            absl::Duration duration, Stream& stream);

}  // namespace thinwire
