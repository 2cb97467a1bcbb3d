#include "runtime/server/rate_limits.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <vector>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "runtime/server/retry_hint.h"

namespace thinwire {
namespace {

constexpr size_t kMaxClients = 65536;
constexpr size_t kMaxName = 64;

}  // namespace

std::string RateKey(absl::string_view client) {
  // gRPC's "ipv4:1.2.3.4" and "ipv6:[::1]", whose brackets may be "%5B" and "%5D".
  absl::string_view name = client;
  if (!absl::ConsumePrefix(&name, "ipv4:") && absl::ConsumePrefix(&name, "ipv6:")) {
    if (!absl::ConsumePrefix(&name, "[")) absl::ConsumePrefix(&name, "%5B");
    if (!absl::ConsumeSuffix(&name, "]")) absl::ConsumeSuffix(&name, "%5D");
  }
  if (name.size() > kMaxName) {
    return absl::StrFormat("%s#%016x", name.substr(0, kMaxName), absl::HashOf(name));
  }
  in6_addr address = {};
  if (inet_pton(AF_INET6, std::string(name).c_str(), &address) != 1) return std::string(name);
  char text[INET6_ADDRSTRLEN] = {};
  if (IN6_IS_ADDR_V4MAPPED(&address)) {
    return inet_ntop(AF_INET, address.s6_addr + 12, text, sizeof(text));
  }
  std::fill(address.s6_addr + 8, address.s6_addr + 16, 0);
  return absl::StrCat(inet_ntop(AF_INET6, &address, text, sizeof(text)), "/64");
}

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
  if (buckets_.size() >= kMaxClients) {
    std::vector<double> levels;
    levels.reserve(buckets_.size());
    for (const auto& [client, bucket] : buckets_) levels.push_back(LevelAt(bucket, now));
    std::nth_element(levels.begin(), levels.begin() + kMaxClients / 2, levels.end());
    const double most = levels[kMaxClients / 2];
    for (auto it = buckets_.begin(); it != buckets_.end() && buckets_.size() > kMaxClients / 2;) {
      const auto here = it++;
      if (LevelAt(here->second, now) >= most) buckets_.erase(here);
    }
  }
  tidy_at_ = std::clamp<size_t>(2 * buckets_.size(), 1024, kMaxClients);
}

RateLimits::Bucket& RateLimits::Find(absl::string_view client, Clock::time_point now) {
  if (buckets_.size() >= tidy_at_) Tidy(now);
  return buckets_.try_emplace(RateKey(client), Bucket{burst_, now}).first->second;
}

absl::Status RateLimits::Take(absl::string_view client, Clock::time_point now) {
  if (!limited()) return absl::OkStatus();
  const std::lock_guard lock(mutex_);
  Bucket& bucket = Find(client, now);
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

void RateLimits::Charge(absl::string_view client, int64_t count, Clock::time_point now) {
  if (!limited() || count <= 0) return;
  const std::lock_guard lock(mutex_);
  Bucket& bucket = Find(client, now);
  bucket = {LevelAt(bucket, now) - static_cast<double>(count), now};
}

size_t RateLimits::num_clients() const {
  const std::lock_guard lock(mutex_);
  return buckets_.size();
}

}  // namespace thinwire
