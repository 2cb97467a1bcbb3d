#include "runtime/server/serving_stats.h"

#include <numeric>

namespace thinwire {

void TimeHistogram::Add(double seconds) {
  int bucket = 0;
  while (bucket < kNumBounds && seconds > Bound(bucket)) ++bucket;
  ++counts[bucket];
  sum += seconds;
}

int64_t TimeHistogram::count() const {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

absl::string_view ServingStateName(ServingState state) {
  switch (state) {
    case ServingState::kStarting:
      return "starting";
    case ServingState::kReady:
      return "ready";
    case ServingState::kDraining:
      return "draining";
    case ServingState::kFailed:
      return "failed";
    case ServingState::kStopped:
      return "stopped";
  }
  return "unknown";
}

}  // namespace thinwire
