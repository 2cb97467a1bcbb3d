// The leader's engine: requests in, token ids out, on all ranks of the job.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/sampling/sampling.h"
#include "runtime/engine/dispatcher.h"
#include "runtime/engine/engine_rank.h"
#include "runtime/engine/step_plan.h"
#include "runtime/scheduler/hand_off_queue.h"
#include "runtime/scheduler/scheduler.h"

namespace thinwire {

enum class FinishReason {
  kLength,  // max_new_tokens, or the end of the context
  kStop,    // a stop token, or on_token said so
  kScored,  // a request that only scores its prompt
};

// "length", "stop", "scored".
absl::string_view FinishReasonName(FinishReason reason);

struct Completion {
  std::vector<int32_t> token_ids;  // generated; a stop token is the last of them
  FinishReason finish_reason = FinishReason::kLength;
  std::vector<float>
      prompt_log_probs;  // [prompt - 1] where scored: of prompt token i + 1 given 0..i
  std::vector<TokenLogProb> prompt_top;  // [prompt - score_begin, num_top] where scored
  std::vector<float> first_logits;       // [vocab] where wanted: after the prompt's last token
  double ttft_ms = 0.0;                  // from Submit to the first token (or score)
  double total_ms = 0.0;                 // from Submit to the end
};

struct Request {
  std::vector<int32_t> prompt_ids;  // at least one
  int64_t max_new_tokens = 0;       // 0 only with score_prompt
  SamplingParams sampling;
  std::vector<int32_t> stop_token_ids;
  bool score_prompt = false;
  int64_t score_begin = 1;  // the first prompt token that is scored; before it scores are 0
  int32_t num_top = 0;      // for each that is scored, the most probable tokens in its place
  bool want_first_logits = false;
  std::string share_salt;  // with share_pages: reads only pages of requests that have the same

  // Told of each generated token, a stop token included, as soon as it is known; false ends the
  // request (kStop). May be null.
  std::function<bool(int32_t token_id)> on_token;
  // Told once, at the end; the engine has forgotten the request by then. Not called when the engine
  // fails.
  std::function<void(Completion completion)> on_done;
};

struct EngineCounters {
  int64_t num_steps = 0;
  int64_t num_prompt_tokens = 0;  // computed, recomputation after preemption included
  int64_t num_reused_tokens = 0;  // not computed, as other sequences had been
  int64_t num_generated_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t num_hand_offs = 0;      // sequences that moved to another group
  int64_t num_handed_tokens = 0;  // of which K and V moved

  EngineCounters& operator+=(const EngineCounters& other);
};

// Lives on rank 0. Thread-compatible: requests are submitted and steps are made by one thread,
// which also calls what requests want to be told.
//
// In a split job the prefill group computes a prompt and samples its first token; then the sequence
// moves to the decode group, as soon as that has room, and stays there: preempted, it is computed
// anew there.
class Engine {
 public:
  // `rank` is rank 0's and outlives the engine.
  explicit Engine(EngineRank* rank);
  ~Engine();

  // Queues a request and returns its id. InvalidArgument: an empty prompt, a token id outside the
  // vocabulary, a prompt that leaves no room in the context, sampling parameters out of range.
  // ResourceExhausted: more KV pages than there are in a group that needs them. max_new_tokens
  // beyond the context are cut to what fits.
  absl::StatusOr<int64_t> Submit(Request request);

  // The same, but K and V of all prompt tokens but the last are not computed: they are whatever
  // lies in the cache (noise, of a synthetic model). For the speed of decoding behind long prompts.
  // Also ResourceExhausted: no slot or pages are free now. Unimplemented: a split job.
  absl::StatusOr<int64_t> SubmitInContext(Request request);

  // Drops a request; on_done is not called.
  void Cancel(int64_t id);

  // Plans and launches as many steps as fit into the pipelines, and one more with steps_ahead, and
  // completes one. An error is final: the engine is broken on all ranks.
  absl::Status Step();

  // Requests, or steps in flight of requests that were cancelled.
  bool HasWork() const;
  int64_t num_live() const { return static_cast<int64_t>(live_.size()); }

  // No work may be left for the following. Reports of all ranks, by rank.
  absl::StatusOr<std::vector<RankReport>> CollectReports();
  // Forgets the traffic so far, on all ranks.
  absl::Status ResetLedgers();
  // Lets the other ranks return from Follow.
  absl::Status Stop();

  EngineCounters counters() const;  // of all groups
  EngineCounters counters(int group) const;
  const EngineRank& rank() const { return *rank_; }
  const Scheduler& scheduler(int group) const { return lanes_[group]->scheduler; }

 private:
  struct Live;
  // Checks a request, and cuts its max_new_tokens.
  absl::Status Admit(Request& request) const;
  int64_t AddLive(Request request);
  // A group of ranks as the leader sees it.
  struct Lane {
    explicit Lane(const SchedulerLimits& limits) : scheduler(limits) {}

    Scheduler scheduler;
    std::deque<ScheduledStep> in_flight;
    EngineCounters counters;
  };

  // Lets sequences go to the decode group.
  absl::Status MoveSequences();
  absl::Status PostMoves(int group, StepPlan::Kind kind, absl::Span<const MovingSeq> seqs);
  StepPlan ToStepPlan(const ScheduledStep& step) const;
  void Apply(int group, const ScheduledStep& step, StepResult& result);
  // Takes one sampled token and finishes the request when it was the last.
  void TakeToken(Live& live, int32_t token_id, int64_t id);
  void Finish(int64_t id, FinishReason reason);
  bool idle() const;  // no step is in flight
  // Leads all groups in a plan without a result.
  absl::Status LeadAll(StepPlan::Kind kind);

  EngineRank* rank_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // by group
  std::unique_ptr<HandOffQueue> hand_offs_;   // null: one group
  absl::flat_hash_map<int64_t, std::unique_ptr<Live>> live_;
  int64_t next_id_ = 0;
  std::unique_ptr<Dispatcher> dispatcher_;
};

}  // namespace thinwire
