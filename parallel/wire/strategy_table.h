// Which strategy is fastest for how many rows, measured where the job runs: what --wire auto uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/strategy.h"

namespace thinwire {

// The strategies that `auto` picks from. The coded ones have 5 bits: of the widths, the fewest
// bytes for less than 1 % of perplexity (the table in the project's README.md).
std::vector<WireStrategy> AutoStrategies();

// Times of one layer half: partial sums of `num_rows` rows to sums, and with token-owner the next
// norm to all ranks.
struct StrategyTimes {
  int64_t num_rows = 0;
  std::vector<double> us;  // as AutoStrategies(); the slowest rank's mean of some calls
};

struct StrategyTable {
  int64_t width = 0;
  std::vector<StrategyTimes> times;  // ascending in num_rows; at least one

  // The fastest for the measured number of rows that is nearest to num_rows in ratio, the larger of
  // two that are equally near; fp16 unless another is at least 10 % faster than it. Equal tables
  // give equal answers on all machines.
  WireStrategy Pick(int64_t num_rows) const;

  // A line per number of rows.
  std::string DebugString() const;
};

// Collective over `tp`, which has several ranks. Measures 1, 4, 16, ... up to max_rows rows of
// `width` normal variates of `dtype`, norms shared in NormBits(options), and stops early where the
// next size would not fit into `budget`: then the largest are missing. (Slow links may take longer,
// since one row is always measured.) All ranks return the same table.
absl::StatusOr<StrategyTable> MeasureStrategies(Communicator& tp, const WireOptions& options,
                                                int64_t width, int64_t max_rows, DType dtype,
                                                absl::Duration budget, Stream& stream);

}  // namespace thinwire
