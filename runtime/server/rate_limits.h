// How many requests a second each client may make.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// A bucket for each client, which fills at a constant rate and holds so many requests as may come
// at once. Thread-safe.
class RateLimits {
 public:
  using Clock = std::chrono::steady_clock;

  // `rate`: requests a second; 0: any. `burst`: at once, at least 1.
  RateLimits(double rate, double burst);

  bool limited() const { return rate_ > 0.0; }

  // Counts a request of a client at `now`, which does not go back. ResourceExhausted, with a retry
  // hint, where its bucket is empty; it costs nothing then.
  absl::Status Take(absl::string_view client, Clock::time_point now);

 private:
  struct Bucket {
    double level = 0.0;  // at `since`
    Clock::time_point since;
  };

  double LevelAt(const Bucket& bucket, Clock::time_point now) const;
  // Forgets who has a full bucket: as if they had never come.
  void Tidy(Clock::time_point now);

  const double rate_;
  const double burst_;
  std::mutex mutex_;  // guards what follows
  absl::flat_hash_map<std::string, Bucket> buckets_;
  size_t tidy_at_ = 1024;  // so many clients
};

}  // namespace thinwire
