#include "runtime/server/rate_limits.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "runtime/server/retry_hint.h"

namespace thinwire {

RateLimits::RateLimits(double rate, double burst) : rate_(rate), burst_(std::max(burst, 1.0)) {}

double RateLimits::LevelAt(const Bucket& bucket, Clock::time_point now) const {
  const double seconds = std::chrono::duration<double>(now - bucket.since).count();
  return std::min(burst_, bucket.level + seconds * rate_);
}

void RateLimits::Tidy(Clock::time_point now) {
  for (auto it = buckets_.begin(); it != buckets_.end();) {
    if (LevelAt(it->second, now) < burst_) {
      ++it;
    } else {
      buckets_.erase(it++);
    }
  }
  tidy_at_ = std::max<size_t>(1024, 2 * buckets_.size());
}

absl::Status RateLimits::Take(absl::string_view client, Clock::time_point now) {
  if (!limited()) return absl::OkStatus();
  const std::lock_guard lock(mutex_);
  if (buckets_.size() >= tidy_at_) Tidy(now);
  Bucket& bucket = buckets_.try_emplace(client, Bucket{burst_, now}).first->second;
  const double level = LevelAt(bucket, now);
  if (level < 1.0) {
    return WithRetryHint(
        absl::ResourceExhaustedError(
            absl::StrFormat("too many requests of this client: at most %.3g a second, %.3g at once",
                            rate_, burst_)),
        absl::Seconds((1.0 - level) / rate_));
  }
  bucket = {level - 1.0, now};
  return absl::OkStatus();
}

}  // namespace thinwire
