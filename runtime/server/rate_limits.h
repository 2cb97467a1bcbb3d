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

// A short name of a client, the same however a transport writes its address: IPv4 as it is, of IPv6
// the 64 bits that one client chooses the others to, of what is no address and long a hash.
std::string RateKey(absl::string_view client);

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
  // Counts `count` more of a client whose request turned out to hold so many: a debt, where its
  // bucket has less.
  void Charge(absl::string_view client, int64_t count, Clock::time_point now);

  size_t num_clients() const;  // that are remembered; at most 65536

 private:
  struct Bucket {
    double level = 0.0;  // at `since`; below 0: owed
    Clock::time_point since;
  };

  double LevelAt(const Bucket& bucket, Clock::time_point now) const;
  // With the lock held.
  Bucket& Find(absl::string_view client, Clock::time_point now);
  // Forgets who has a full bucket: as if they had never come; of too many, those who gain least.
  void Tidy(Clock::time_point now);

  const double rate_;
  const double burst_;
  mutable std::mutex mutex_;  // guards what follows
  absl::flat_hash_map<std::string, Bucket> buckets_;
  size_t tidy_at_ = 1024;  // so many clients
};

}  // namespace thinwire
