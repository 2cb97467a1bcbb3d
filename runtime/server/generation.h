// One request being served: what was asked, and the mailbox from the thread that runs the engine to
// the one that answers the client.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/sampling/top_log_probs.h"
#include "runtime/batch/prompt.h"

namespace thinwire {

using ServingClock = std::chrono::steady_clock;

inline constexpr int64_t kMaxTopLogProbs = 20;

struct GenerationRequest {
  std::string id;                   // visible ASCII; no two live requests have the same
  std::vector<int32_t> prompt_ids;  // at least one
  GenerationParams params;
  std::vector<int32_t> stop_token_ids;  // beside the model's own, which params.ignore_eos drops
  std::string share_salt;               // only requests with the same one share KV pages
  bool want_log_probs = false;          // of generated tokens, with the end
  int64_t num_top_log_probs = 0;        // and of the most probable ones in the place of each
  ServingClock::time_point deadline = ServingClock::time_point::max();
  int priority = 0;  // [-100, 100]; one more is worth ten seconds of waiting
};

enum class EndReason { kStop, kStopString, kLength, kCancelled, kDeadline, kError };

// "stop", "stop_string", "length", "cancelled", "deadline", "error".
absl::string_view EndReasonName(EndReason reason);

struct GenerationEnd {
  absl::Status status;  // OK for kStop, kStopString and kLength alone
  EndReason reason = EndReason::kStop;
  int64_t num_prompt_tokens = 0;
  int64_t num_generated_tokens = 0;
  std::vector<float> log_probs;  // of each generated token, where wanted and the status is OK
  std::vector<TokenLogProb> top_log_probs;  // [num_generated_tokens, num_top_log_probs], too
  double queue_ms = 0.0;                    // from Submit until the engine took it
  double prefill_ms = 0.0;                  // from there to the first token
  double decode_ms = 0.0;                   // from there to the end
};

// What has come since the last Take.
struct GenerationDelta {
  std::string text;                // well-formed UTF-8, special tokens left out, final
  std::vector<int32_t> token_ids;  // their text may be held back for a later delta
  std::optional<GenerationEnd> end;

  bool empty() const { return text.empty() && token_ids.empty() && !end.has_value(); }
};

// Deltas that nobody takes are joined, so memory is bounded by max_tokens, and writers never wait.
// Thread-safe. Shared by the serving loop and the transport that answers.
class Generation {
 public:
  explicit Generation(std::string id) : id_(std::move(id)) {}

  const std::string& id() const { return id_; }

  // For the reader. What is there now; empty when nothing is. The end comes once.
  GenerationDelta Take();
  // Calls `wake` once, on any thread, as soon as Take has something: perhaps now, before returning.
  void WhenReady(std::function<void()> wake);
  // Whether Take has something, waiting for it until then.
  bool WaitUntil(ServingClock::time_point until);
  // Called once, on any thread, when the reader has been given up as too slow; may be null.
  void WhenAbandoned(std::function<void()> abandon);

  // For the serving loop.
  void Push(absl::string_view text, int32_t token_id);
  // The first end counts; later ones, and what is pushed after it, are dropped. Returns whether it
  // was the first.
  bool End(GenerationEnd end, absl::string_view text);
  void Abandon();
  void RequestCancel(const absl::Status& why);  // the first counts; `why` is no OK
  absl::Status cancelled() const;               // OK: it is not
  // Since when something waits for the reader; nothing: nothing does.
  std::optional<ServingClock::time_point> unread_since() const;
  int64_t num_tokens() const;

 private:
  // Tells the reader that there is something to read now, where nothing was: who waits already
  // knows of what comes before it is taken. Releases `lock`, on mutex_.
  void Announce(std::unique_lock<std::mutex> lock);

  const std::string id_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  GenerationDelta pending_;
  ServingClock::time_point pending_since_;
  bool ended_ = false;
  int64_t num_tokens_ = 0;
  absl::Status cancelled_;
  std::function<void()> wake_;
  std::function<void()> abandon_;
};

}  // namespace thinwire
