// What a server has done so far, as numbers that only grow, and what it is doing now.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "parallel/wire/ledger.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/memory_report.h"

namespace thinwire {

// Seconds, in buckets that double from half a millisecond to about 65 s.
struct TimeHistogram {
  static constexpr int kNumBounds = 18;
  static double Bound(int i) { return 0.0005 * static_cast<double>(int64_t{1} << i); }

  std::array<int64_t, kNumBounds + 1> counts = {};  // [i]: up to Bound(i), the last: above all
  double sum = 0.0;

  void Add(double seconds);
  int64_t count() const;
};

// Written by the engine's thread.
struct ServingTotals {
  int64_t num_prompt_tokens = 0;         // of requests that the engine took
  int64_t num_generated_tokens = 0;      // that went to clients
  std::map<std::string, int64_t> ended;  // requests, by EndReasonName
  EngineCounters engine;
  TimeHistogram queue, prefill, decode, ttft, itl, e2e, step;
};

enum class ServingState { kStarting, kReady, kDraining, kFailed, kStopped };

// "starting", "ready", "draining", "failed", "stopped".
absl::string_view ServingStateName(ServingState state);

struct ServingLoad {
  ServingState state = ServingState::kStarting;
  std::string progress;  // kStarting: what is being done; kFailed: why
  int64_t num_running = 0;
  int64_t num_queued = 0;
  int64_t num_queued_tokens = 0;
  double predicted_wait_seconds = 0.0;  // of a request that came now; 0 also before a rate is known
  int64_t max_running = 0;
  int64_t kv_pages = 0;  // of all groups
  int64_t kv_pages_used = 0;
  int64_t page_size = 0;
  double tokens_per_second = 0.0;           // generated, over about the last second
  double seconds_since_step = 0.0;          // or since the last sign of life of all ranks
  Ledger wire;                              // of rank 0
  std::vector<MemoryReport> memory;         // by rank, as of the last idle moment; may be empty
  std::map<std::string, int64_t> rejected;  // requests, by lower-case status code
  ServingTotals totals;
};

}  // namespace thinwire
