#include "runtime/engine/engine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/engine/page_keys.h"

namespace thinwire {

using Clock = std::chrono::steady_clock;

struct Engine::Live {
  Request request;
  std::vector<int32_t> tokens;        // prompt, then generated
  int group = 0;                      // that it runs on or moves to
  std::optional<PageKeyChain> chain;  // where its pages may be shared
  Clock::time_point submitted;
  Completion completion;
};

namespace {

double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// `top`: of the tokens from start + 1 on, a step's part.
void TakeTop(const Request& request, int64_t start, const std::vector<TokenLogProb>& top,
             std::vector<TokenLogProb>& out) {
  const int64_t k = request.num_top;
  if (top.empty()) return;
  const auto num_scored = static_cast<int64_t>(request.prompt_ids.size()) - request.score_begin;
  out.resize(num_scored * k);
  for (int64_t i = 0; i < static_cast<int64_t>(top.size()) / k; ++i) {
    const int64_t place = start + 1 + i - request.score_begin;
    if (place >= 0 && place < num_scored) {
      std::copy_n(top.begin() + i * k, k, out.begin() + place * k);
    }
  }
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

EngineCounters& EngineCounters::operator+=(const EngineCounters& other) {
  num_steps += other.num_steps;
  num_prompt_tokens += other.num_prompt_tokens;
  num_reused_tokens += other.num_reused_tokens;
  num_generated_tokens += other.num_generated_tokens;
  num_preemptions += other.num_preemptions;
  num_hand_offs += other.num_hand_offs;
  num_handed_tokens += other.num_handed_tokens;
  return *this;
}

Engine::Engine(EngineRank* rank) : rank_(rank) {
  TW_CHECK_EQ(rank->rank(), 0);
  for (int group = 0; group < rank->layout().num_groups(); ++group) {
    lanes_.push_back(std::make_unique<Lane>(rank->scheduler_limits(group)));
  }
  if (rank->layout().split()) {
    hand_offs_ = std::make_unique<HandOffQueue>(&lanes_[0]->scheduler, &lanes_[1]->scheduler);
    dispatcher_ = MakeThreadDispatcher(rank);
  } else {
    dispatcher_ = MakeDirectDispatcher(rank);
  }
}

Engine::~Engine() = default;

absl::Status Engine::Admit(Request& request) const {
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
  if (request.score_begin < 1 || request.num_top < 0 || request.num_top > config.vocab) {
    return absl::InvalidArgumentError(
        absl::StrCat("scores from token ", request.score_begin, " with ", request.num_top,
                     " most probable ones; expected at least 1, and 0 to ", config.vocab));
  }
  request.max_new_tokens = std::min(request.max_new_tokens, room);
  return absl::OkStatus();
}

int64_t Engine::AddLive(Request request) {
  const int64_t id = next_id_++;
  auto live = std::make_unique<Live>();
  live->tokens = request.prompt_ids;
  live->request = std::move(request);
  live->submitted = Clock::now();
  live_.emplace(id, std::move(live));
  return id;
}

absl::StatusOr<int64_t> Engine::Submit(Request request) {
  TW_RETURN_IF_ERROR(Admit(request));
  const auto prompt_size = static_cast<int64_t>(request.prompt_ids.size());
  int64_t tokens_of_first_group = request.max_new_tokens;
  if (hand_offs_ != nullptr && request.max_new_tokens > 1) {
    TW_RETURN_IF_ERROR(Annotate(lanes_[1]->scheduler.CheckFits(prompt_size, request.max_new_tokens),
                                "decode group"));
    tokens_of_first_group = 1;
  }
  std::optional<PageKeyChain> chain;
  std::vector<PageKey> keys;
  // Scores come from all tokens.
  if (rank_->options().share_pages && !request.score_prompt) {
    chain.emplace(request.share_salt, rank_->options().page_size);
    chain->Extend(request.prompt_ids);
    keys = chain->keys();
  }
  TW_RETURN_IF_ERROR(
      lanes_[0]->scheduler.Add(next_id_, prompt_size, tokens_of_first_group, std::move(keys)));
  const int64_t id = AddLive(std::move(request));
  live_.at(id)->chain = std::move(chain);
  return id;
}

absl::StatusOr<int64_t> Engine::SubmitInContext(Request request) {
  if (hand_offs_ != nullptr) {
    return absl::UnimplementedError("decoding behind tokens that are not computed in a split job");
  }
  TW_RETURN_IF_ERROR(Admit(request));
  const auto prompt_size = static_cast<int64_t>(request.prompt_ids.size());
  if (prompt_size < 2) return Submit(std::move(request));
  Scheduler& scheduler = lanes_[0]->scheduler;
  TW_RETURN_IF_ERROR(scheduler.CheckFits(prompt_size, request.max_new_tokens));
  const std::optional<Binding> binding =
      scheduler.Adopt(next_id_, prompt_size, request.max_new_tokens);
  if (!binding.has_value()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a context of ", prompt_size, " tokens: expected a free slot and pages, found ",
        scheduler.num_running(), " sequences of at most ", scheduler.limits().max_seqs, " and ",
        scheduler.num_free_pages(), " pages of ", scheduler.limits().page_size, " tokens"));
  }
  StepPlan plan = {.kind = StepPlan::Kind::kAssume, .id = scheduler.num_planned_steps()};
  plan.moved.push_back({next_id_, binding->slot, prompt_size - 1, binding->pages});
  TW_RETURN_IF_ERROR(dispatcher_->Settle());
  TW_RETURN_IF_ERROR(rank_->Lead(0, plan));
  scheduler.Resume(next_id_);
  return AddLive(std::move(request));
}

void Engine::Cancel(int64_t id) {
  const auto it = live_.find(id);
  if (it == live_.end()) return;
  const int group = it->second->group;
  live_.erase(it);
  if (hand_offs_ == nullptr || !hand_offs_->Cancel(id)) lanes_[group]->scheduler.Finish(id);
}

bool Engine::idle() const {
  return std::all_of(lanes_.begin(), lanes_.end(),
                     [](const auto& lane) { return lane->in_flight.empty(); });
}

bool Engine::HasWork() const {
  return !live_.empty() || !idle() || (hand_offs_ != nullptr && !hand_offs_->empty());
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
    seq.binds = part.binds;
    if (part.late) {
      seq.token_ids = {-1 - part.slot};
    } else {
      seq.token_ids.assign(live.tokens.begin() + part.start, live.tokens.begin() + end);
    }
    seq.new_pages = part.new_pages;
    seq.sample = part.samples && live.request.max_new_tokens > 0;
    seq.sampling = live.request.sampling;
    const auto prompt_size = static_cast<int64_t>(live.request.prompt_ids.size());
    seq.want_logits = live.request.want_first_logits && end == prompt_size && part.samples;
    if (live.request.score_prompt && part.start < prompt_size) {
      for (int64_t next = part.start + 1; next <= end; ++next) {
        const bool scored = next >= live.request.score_begin && next < prompt_size;
        seq.targets.push_back(scored ? live.tokens[next] : -1);
      }
      seq.num_top = live.request.num_top;
    }
    plan.seqs.push_back(std::move(seq));
  }
  return plan;
}

absl::Status Engine::PostMoves(int group, StepPlan::Kind kind, absl::Span<const MovingSeq> seqs) {
  if (seqs.empty()) return absl::OkStatus();
  StepPlan plan;
  plan.kind = kind;
  plan.id = lanes_[group]->scheduler.num_planned_steps();  // the one that follows
  for (const MovingSeq& seq : seqs) {
    if (kind == StepPlan::Kind::kSend) {
      plan.moved.push_back({seq.id, seq.from_slot, seq.num_tokens, {}});
    } else {
      plan.moved.push_back({seq.id, seq.to.slot, seq.num_tokens, seq.to.pages});
    }
  }
  return dispatcher_->Post(group, std::move(plan));
}

absl::Status Engine::MoveSequences() {
  if (hand_offs_ == nullptr) return absl::OkStatus();
  const std::vector<MovingSeq> departing = hand_offs_->Depart();
  for (const MovingSeq& seq : departing) {
    live_.at(seq.id)->group = 1;
    ++lanes_[0]->counters.num_hand_offs;
    lanes_[0]->counters.num_handed_tokens += seq.num_tokens;
  }
  TW_RETURN_IF_ERROR(PostMoves(0, StepPlan::Kind::kSend, departing));
  return PostMoves(1, StepPlan::Kind::kReceive, hand_offs_->Arrive());
}

absl::Status Engine::Step() {
  TW_RETURN_IF_ERROR(MoveSequences());
  for (size_t group = 0; group < lanes_.size(); ++group) {
    Lane& lane = *lanes_[group];
    while (std::optional<ScheduledStep> step = lane.scheduler.Plan()) {
      TW_RETURN_IF_ERROR(dispatcher_->Post(static_cast<int>(group), ToStepPlan(*step)));
      lane.in_flight.push_back(*std::move(step));
      ++lane.counters.num_steps;
    }
  }
  if (idle()) {
    // The schedulers promise progress; a sequence that was cancelled on its way has just made room
    // for the next, which departs in the next step.
    TW_CHECK(!HasWork() || (hand_offs_ != nullptr && !hand_offs_->empty()));
    return absl::OkStatus();
  }
  TW_ASSIGN_OR_RETURN(GroupResult next, dispatcher_->Next());
  Lane& lane = *lanes_[next.group];
  StepResult& result = next.result;
  if (lane.in_flight.empty()) {
    return absl::InternalError(absl::StrCat("result of step ", result.id, "; expected none"));
  }
  const ScheduledStep step = std::move(lane.in_flight.front());
  lane.in_flight.pop_front();
  if (result.id != step.id || result.seqs.size() != step.seqs.size()) {
    return absl::InternalError(absl::StrCat("result of step ", result.id, " with ",
                                            result.seqs.size(), " sequences; expected step ",
                                            step.id, " with ", step.seqs.size()));
  }
  lane.scheduler.Commit();
  Apply(next.group, step, result);
  return absl::OkStatus();
}

void Engine::Apply(int group, const ScheduledStep& step, StepResult& result) {
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
      TakeTop(live.request, part.start, seq.top, live.completion.prompt_top);
    }
    if (!seq.logits.empty()) live.completion.first_logits = std::move(seq.logits);
    lanes_[group]->counters.num_prompt_tokens +=
        std::max<int64_t>(0, std::min(part.start + part.num_tokens, prompt_size) - part.start);
    if (!part.samples) continue;
    if (live.completion.ttft_ms == 0.0) live.completion.ttft_ms = MillisecondsSince(live.submitted);
    if (live.request.max_new_tokens == 0) {
      Finish(part.id, FinishReason::kScored);
    } else {
      TakeToken(live, seq.token_id, part.id);
      // `live` is gone where that was its last.
      const auto left = live_.find(part.id);
      if (hand_offs_ != nullptr && group == 0 && left != live_.end()) {
        hand_offs_->Add(part.id, static_cast<int64_t>(left->second->tokens.size()));
      }
    }
  }
}

void Engine::TakeToken(Live& live, int32_t token_id, int64_t id) {
  live.tokens.push_back(token_id);
  live.completion.token_ids.push_back(token_id);
  ++lanes_[live.group]->counters.num_generated_tokens;
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
  const std::unique_ptr<Live> live = std::move(live_.at(id));
  std::vector<PageKey> keys;
  if (live->chain.has_value() && live->group == 0) {
    live->chain->Extend(live->tokens);
    keys = live->chain->keys();
  }
  lanes_[live->group]->scheduler.Finish(id, std::move(keys));
  live_.erase(id);
  live->completion.finish_reason = reason;
  live->completion.total_ms = MillisecondsSince(live->submitted);
  if (live->request.on_done != nullptr) live->request.on_done(std::move(live->completion));
}

absl::StatusOr<std::vector<RankReport>> Engine::CollectReports() {
  TW_CHECK(!HasWork());
  TW_RETURN_IF_ERROR(dispatcher_->Settle());
  return rank_->CollectReports();
}

absl::Status Engine::LeadAll(StepPlan::Kind kind) {
  TW_RETURN_IF_ERROR(dispatcher_->Settle());
  for (size_t group = 0; group < lanes_.size(); ++group) {
    TW_RETURN_IF_ERROR(rank_->Lead(static_cast<int>(group), {.kind = kind}));
  }
  return absl::OkStatus();
}

absl::Status Engine::ResetLedgers() {
  TW_CHECK(!HasWork());
  return LeadAll(StepPlan::Kind::kReset);
}

absl::Status Engine::Stop() { return LeadAll(StepPlan::Kind::kStop); }

EngineCounters Engine::counters(int group) const {
  EngineCounters counters = lanes_[group]->counters;
  counters.num_reused_tokens = lanes_[group]->scheduler.num_reused_tokens();
  counters.num_preemptions = lanes_[group]->scheduler.num_preemptions();
  return counters;
}

EngineCounters Engine::counters() const {
  EngineCounters sum;
  for (size_t group = 0; group < lanes_.size(); ++group) sum += counters(static_cast<int>(group));
  return sum;
}

}  // namespace thinwire
