#include "runtime/engine/engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

using Clock = std::chrono::steady_clock;

struct Engine::Live {
  Request request;
  std::vector<int32_t> tokens;  // prompt, then generated
  Clock::time_point submitted;
  Completion completion;
};

namespace {

double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

}  // namespace

absl::string_view FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kScored:
      return "scored";
  }
  return "unknown";
}

Engine::Engine(EngineRank* rank) : rank_(rank), scheduler_(rank->scheduler_limits()) {
  TW_CHECK_EQ(rank->rank(), 0);
}

Engine::~Engine() = default;

absl::StatusOr<int64_t> Engine::Submit(Request request) {
  const ModelConfig& config = rank_->config();
  const auto prompt_size = static_cast<int64_t>(request.prompt_ids.size());
  if (prompt_size == 0) {
    return absl::InvalidArgumentError("prompt has no tokens; expected at least one");
  }
  for (int64_t i = 0; i < prompt_size; ++i) {
    const int32_t id = request.prompt_ids[i];
    if (id < 0 || id >= config.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", id, " at position ", i,
                                                     " is outside the vocabulary; expected 0 to ",
                                                     config.vocab - 1));
    }
  }
  TW_RETURN_IF_ERROR(ValidateSamplingParams(request.sampling));
  const int64_t room = config.max_positions - prompt_size;
  const bool generates = request.max_new_tokens > 0;
  if (room < (generates ? 1 : 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt of ", prompt_size, " tokens is longer than the context: expected at most ",
        config.max_positions - (generates ? 1 : 0)));
  }
  if (!generates && !request.score_prompt) {
    return absl::InvalidArgumentError("max_tokens is 0; expected at least 1");
  }
  request.max_new_tokens = std::min(request.max_new_tokens, room);
  const int64_t id = next_id_++;
  TW_RETURN_IF_ERROR(scheduler_.Add(id, prompt_size, request.max_new_tokens));
  auto live = std::make_unique<Live>();
  live->tokens = request.prompt_ids;
  live->request = std::move(request);
  live->submitted = Clock::now();
  live_.emplace(id, std::move(live));
  return id;
}

void Engine::Cancel(int64_t id) {
  if (live_.erase(id) > 0) scheduler_.Finish(id);
}

StepPlan Engine::ToStepPlan(const ScheduledStep& step) const {
  StepPlan plan;
  plan.id = step.id;
  plan.seqs.reserve(step.seqs.size());
  for (const ScheduledSeq& part : step.seqs) {
    const Live& live = *live_.at(part.id);
    const int64_t end = part.start + part.num_tokens;
    PlannedSeq seq;
    seq.slot = part.slot;
    seq.start = part.start;
    seq.token_ids.assign(live.tokens.begin() + part.start, live.tokens.begin() + end);
    seq.new_pages = part.new_pages;
    seq.sample = part.samples && live.request.max_new_tokens > 0;
    seq.sampling = live.request.sampling;
    const auto prompt_size = static_cast<int64_t>(live.request.prompt_ids.size());
    seq.want_logits = live.request.want_first_logits && end == prompt_size && part.samples;
    if (live.request.score_prompt && part.start < prompt_size) {
      for (int64_t next = part.start + 1; next <= end; ++next) {
        seq.targets.push_back(next < prompt_size ? live.tokens[next] : -1);
      }
    }
    plan.seqs.push_back(std::move(seq));
  }
  return plan;
}

absl::Status Engine::Step() {
  const bool samples_here = rank_->mesh().pp_size == 1;
  while (true) {
    std::optional<ScheduledStep> step = scheduler_.Plan();
    if (!step.has_value()) break;
    TW_ASSIGN_OR_RETURN(StepResult result, rank_->Lead(ToStepPlan(*step)));
    if (samples_here) own_results_.push_back(std::move(result));
    in_flight_.push_back(*std::move(step));
    ++counters_.num_steps;
  }
  if (in_flight_.empty()) {
    TW_CHECK(!HasWork());  // the scheduler promises progress
    return absl::OkStatus();
  }
  StepResult result;
  if (samples_here) {
    result = std::move(own_results_.front());
    own_results_.pop_front();
  } else {
    TW_ASSIGN_OR_RETURN(result, rank_->ReceiveResult());
  }
  const ScheduledStep step = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (result.id != step.id || result.seqs.size() != step.seqs.size()) {
    return absl::InternalError(absl::StrCat("result of step ", result.id, " with ",
                                            result.seqs.size(), " sequences; expected step ",
                                            step.id, " with ", step.seqs.size()));
  }
  scheduler_.Commit();
  Apply(step, result);
  return absl::OkStatus();
}

void Engine::Apply(const ScheduledStep& step, StepResult& result) {
  for (size_t s = 0; s < step.seqs.size(); ++s) {
    const ScheduledSeq& part = step.seqs[s];
    const auto it = live_.find(part.id);
    if (it == live_.end()) continue;  // cancelled meanwhile
    Live& live = *it->second;
    SeqResult& seq = result.seqs[s];
    const auto prompt_size = static_cast<int64_t>(live.request.prompt_ids.size());
    if (!seq.log_probs.empty()) {
      // Chunks arrive in order, but a preempted sequence computes its first ones again.
      std::vector<float>& scores = live.completion.prompt_log_probs;
      scores.resize(prompt_size - 1);
      const int64_t count = std::min(part.num_tokens, prompt_size - 1 - part.start);
      std::copy_n(seq.log_probs.begin(), std::max<int64_t>(count, 0), scores.begin() + part.start);
    }
    if (!seq.logits.empty()) live.completion.first_logits = std::move(seq.logits);
    counters_.num_prompt_tokens +=
        std::max<int64_t>(0, std::min(part.start + part.num_tokens, prompt_size) - part.start);
    if (!part.samples) continue;
    if (live.completion.ttft_ms == 0.0) live.completion.ttft_ms = MillisecondsSince(live.submitted);
    if (live.request.max_new_tokens == 0) {
      Finish(part.id, FinishReason::kScored);
    } else {
      TakeToken(live, seq.token_id, part.id);
    }
  }
}

void Engine::TakeToken(Live& live, int32_t token_id, int64_t id) {
  live.tokens.push_back(token_id);
  live.completion.token_ids.push_back(token_id);
  ++counters_.num_generated_tokens;
  const std::vector<int32_t>& stops = live.request.stop_token_ids;
  const bool wants_more = live.request.on_token == nullptr || live.request.on_token(token_id);
  if (!wants_more || std::find(stops.begin(), stops.end(), token_id) != stops.end()) {
    Finish(id, FinishReason::kStop);
  } else if (static_cast<int64_t>(live.completion.token_ids.size()) ==
             live.request.max_new_tokens) {
    Finish(id, FinishReason::kLength);
  }
}

void Engine::Finish(int64_t id, FinishReason reason) {
  scheduler_.Finish(id);
  const std::unique_ptr<Live> live = std::move(live_.at(id));
  live_.erase(id);
  live->completion.finish_reason = reason;
  live->completion.total_ms = MillisecondsSince(live->submitted);
  if (live->request.on_done != nullptr) live->request.on_done(std::move(live->completion));
}

absl::Status Engine::ResetLedgers() {
  TW_CHECK(!HasWork());
  StepPlan plan;
  plan.kind = StepPlan::Kind::kReset;
  return rank_->Lead(plan).status();
}

absl::Status Engine::Stop() {
  StepPlan plan;
  plan.kind = StepPlan::Kind::kStop;
  return rank_->Lead(plan).status();
}

EngineCounters Engine::counters() const {
  EngineCounters counters = counters_;
  counters.num_preemptions = scheduler_.num_preemptions();
  return counters;
}

}  // namespace thinwire
