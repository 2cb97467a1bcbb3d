// Optimal division of sorted channels into few clusters that share a quantisation step.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"

namespace thinwire {

struct Partition {
  // [num_clusters + 1], ascending from 0 to num_channels; all but the last are multiples of the
  // alignment. {0} without channels.
  std::vector<int32_t> offsets;
  double cost = 0.0;
};

// The partition of channels [0, num_channels), in the order given, into at most max_clusters >= 1
// consecutive clusters with the least total cost, by dynamic programming over cost(begin, end), end
// > begin. Of equal totals: the fewest clusters, then the longest last one. `alignment` >= 1: 16
// keeps packed codes of every width on whole bytes. cost is called once for each of the (n /
// alignment)^2 / 2 aligned ranges: ends ascending and, for one end, begins descending. It must not
// be NaN.
Partition OptimalPartition(int64_t num_channels, int64_t alignment, int64_t max_clusters,
                           absl::FunctionRef<double(int64_t begin, int64_t end)> cost);

struct StepPartition : Partition {
  std::vector<int32_t> steps;  // [num_clusters]: index of each cluster's step
};

// The same where a cluster costs min over s of the sum of errors[c, s] over its channels: `errors`
// [num_channels, num_steps] is what channel c loses with the s-th candidate step. Of equal steps,
// the first.
StepPartition OptimalStepPartition(absl::Span<const double> errors, int64_t num_channels,
                                   int64_t num_steps, int64_t alignment, int64_t max_clusters);

}  // namespace thinwire
