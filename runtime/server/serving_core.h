// What all transports of a server share.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/server/rank_places.h"
#include "runtime/server/rate_limits.h"
#include "runtime/server/request_ids.h"
#include "runtime/server/served_model.h"
#include "runtime/server/serving_loop.h"

namespace thinwire {

struct RankInfo {
  RankPlace place;
  int tp_rank = 0;
  int pp_rank = 0;
};

// How the job is laid out: known once its ranks have met.
struct JobInfo {
  std::string layout;     // "tp 2 x pp 1"
  std::string transport;  // between ranks
  std::vector<RankInfo> ranks;
};

// Outlives the transports. Thread-safe.
class ServingCore {
 public:
  ServingCore(const ServingLimits& limits, ServedModel served)
      : loop(limits), model(std::move(served)) {}

  void SetJob(JobInfo job) {
    const std::lock_guard lock(mutex_);
    job_ = std::move(job);
  }
  JobInfo job() const {
    const std::lock_guard lock(mutex_);
    return job_;
  }

  // OK where a client may make a request now; else counts it as refused.
  absl::Status CheckRate(absl::string_view client) {
    if (!rates.has_value()) return absl::OkStatus();
    const absl::Status status = rates->Take(client, RateLimits::Clock::now());
    if (!status.ok()) loop.CountRejected(status);
    return status;
  }

  // The rest of a request that holds `count`, where CheckRate has let it in.
  void ChargeRate(absl::string_view client, int64_t count) {
    if (rates.has_value()) rates->Charge(client, count - 1, RateLimits::Clock::now());
  }

  ServingLoop loop;
  std::optional<RateLimits> rates;  // nothing: no limits
  RequestIds ids;
  std::atomic<int64_t> num_calls = 0;      // gRPC calls that are being answered
  std::atomic<int64_t> num_exchanges = 0;  // HTTP requests that the loop took
  const ServedModel model;
  // Constant once transports run.
  std::string version;
  std::string data_token;     // that clients must know; empty: none
  std::string admin_token;    // that administrators must know
  std::string client_header;  // in lower case; who a client is; empty: its address says so
  absl::Duration drain_timeout = absl::Seconds(45);

 private:
  mutable std::mutex mutex_;
  JobInfo job_;
};

}  // namespace thinwire
