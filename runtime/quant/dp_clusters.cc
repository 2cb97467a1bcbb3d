#include "runtime/quant/dp_clusters.h"

#include <algorithm>
#include <limits>

#include "kernels/core/check.h"

namespace thinwire {

Partition OptimalPartition(int64_t num_channels, int64_t alignment, int64_t max_clusters,
                           absl::FunctionRef<double(int64_t begin, int64_t end)> cost) {
  TW_CHECK_GE(num_channels, 0);
  TW_CHECK_GE(alignment, 1);
  TW_CHECK_GE(max_clusters, 1);
  Partition partition;
  partition.offsets = {0};
  if (num_channels == 0) return partition;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const int64_t num_units = (num_channels + alignment - 1) / alignment;
  const int64_t most = std::min(max_clusters, num_units);
  const auto channel = [&](int64_t unit) { return std::min(unit * alignment, num_channels); };
  // least[e][k]: the cost of units [0, e) in exactly k clusters, of which the last begins at
  // last_begin[e][k].
  std::vector<double> least(static_cast<size_t>((num_units + 1) * (most + 1)), kInfinity);
  std::vector<int32_t> last_begin(least.size(), 0);
  least[0] = 0.0;
  for (int64_t end = 1; end <= num_units; ++end) {
    double* to = least.data() + end * (most + 1);
    for (int64_t begin = end - 1; begin >= 0; --begin) {
      const double of_range = cost(channel(begin), channel(end));
      const double* from = least.data() + begin * (most + 1);
      for (int64_t k = 1; k <= std::min(most, begin + 1); ++k) {
        const double total = from[k - 1] + of_range;
        // An unreachable or infinite total stays out, unless there is no other.
        if (total < to[k] || (total == to[k] && from[k - 1] < kInfinity)) {
          to[k] = total;
          last_begin[end * (most + 1) + k] = static_cast<int32_t>(begin);
        }
      }
    }
  }
  const double* totals = least.data() + num_units * (most + 1);
  int64_t k = std::min_element(totals + 1, totals + most + 1) - totals;
  partition.cost = totals[k];
  partition.offsets.assign(static_cast<size_t>(k + 1), 0);
  for (int64_t end = num_units; k > 0; --k) {
    partition.offsets[k] = static_cast<int32_t>(channel(end));
    end = last_begin[end * (most + 1) + k];
  }
  return partition;
}

StepPartition OptimalStepPartition(absl::Span<const double> errors, int64_t num_channels,
                                   int64_t num_steps, int64_t alignment, int64_t max_clusters) {
  TW_CHECK_GE(num_steps, 1);
  TW_CHECK_EQ(static_cast<int64_t>(errors.size()), num_channels * num_steps);
  // Ranges with one end come with falling begins, so each adds its channels to the sums of the one
  // before. (Differences of sums over everything would drown small errors beside large ones.)
  std::vector<double> sums(static_cast<size_t>(num_steps));
  const auto add = [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t s = 0; s < num_steps; ++s) sums[s] += errors[c * num_steps + s];
    }
  };
  int64_t added_end = -1;
  int64_t added_begin = -1;
  StepPartition result;
  static_cast<Partition&>(result) =
      OptimalPartition(num_channels, alignment, max_clusters, [&](int64_t begin, int64_t end) {
        if (end != added_end) {
          std::fill(sums.begin(), sums.end(), 0.0);
          added_end = end;
          added_begin = end;
        }
        add(begin, added_begin);
        added_begin = begin;
        return *std::min_element(sums.begin(), sums.end());
      });
  for (size_t k = 0; k + 1 < result.offsets.size(); ++k) {
    std::fill(sums.begin(), sums.end(), 0.0);
    add(result.offsets[k], result.offsets[k + 1]);
    const auto best = std::min_element(sums.begin(), sums.end()) - sums.begin();
    result.steps.push_back(static_cast<int32_t>(best));
  }
  return result;
}

}  // namespace thinwire
