// Sums over calibration windows that do not depend on how many ranks share the windows.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "parallel/plan/shard_plan.h"

namespace thinwire {

inline constexpr int kLanes = 4;

// The windows that a rank has, counted from its first, in runs: lanes of all `total` windows where
// 1, 2 or 4 ranks share them (then each rank's lanes are a half or a quarter of all), else one run.
inline std::vector<Range> LanesOfRank(int64_t total, int rank, int num_ranks) {
  const int64_t first = total * rank / num_ranks;
  if (num_ranks > kLanes || kLanes % num_ranks != 0) {
    return {{0, total * (rank + 1) / num_ranks - first}};
  }
  std::vector<Range> lanes;
  const int per_rank = kLanes / num_ranks;
  for (int lane = rank * per_rank; lane < (rank + 1) * per_rank; ++lane) {
    lanes.push_back({total * lane / kLanes - first, total * (lane + 1) / kLanes - first});
  }
  return lanes;
}

// Merges parts in pairs, pairs of pairs and so on, as SumOverRanks does with those of ranks. T has
// Merge(const T&).
template <typename T>
class LaneSum {
 public:
  void Add(T part) {
    int level = 0;
    for (; !parts_.empty() && parts_.back().first == level; ++level) {
      T left = std::move(parts_.back().second);
      parts_.pop_back();
      left.Merge(part);
      part = std::move(left);
    }
    parts_.emplace_back(level, std::move(part));
  }

  // Of 1, 2 or 4 parts.
  T Take() {
    TW_CHECK_EQ(parts_.size(), 1u);
    return std::move(parts_.front().second);
  }

 private:
  std::vector<std::pair<int, T>> parts_;
};

}  // namespace thinwire
