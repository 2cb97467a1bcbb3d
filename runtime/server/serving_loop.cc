#include "runtime/server/serving_loop.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/core/status_macros.h"
#include "runtime/server/retry_hint.h"
#include "runtime/server/serving_loop_active.h"

namespace thinwire {
namespace {

constexpr int64_t kPriorityMs = 10000;
constexpr int kMaxPriority = 100;
constexpr size_t kMaxStopBytes = 4096;
constexpr absl::Duration kMaxDrain = absl::Hours(24 * 365);  // what clocks can add

int64_t MillisecondsNow() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             ServingClock::now().time_since_epoch())
      .count();
}

}  // namespace

ServingLoop::ServingLoop(const ServingLimits& limits) : limits_(limits) {
  last_life_ = rate_since_ = queue_seen_ = ServingClock::now();
}

ServingLoop::~ServingLoop() = default;

void ServingLoop::AddListener(StateListener listener) { listeners_.push_back(std::move(listener)); }

void ServingLoop::SetProgress(absl::string_view progress) {
  const std::lock_guard lock(mutex_);
  load_.progress = std::string(progress);
}

bool ServingLoop::SetState(ServingState state, absl::string_view why) {
  {
    const std::lock_guard lock(mutex_);
    const bool final = state_ == ServingState::kFailed || state_ == ServingState::kStopped;
    if (final || state_ == state) return false;
    if (state == ServingState::kReady && state_ != ServingState::kStarting) return false;
    state_ = state;
    if (state == ServingState::kFailed) load_.progress = std::string(why);
    untold_.push_back(state);
    attention_ = true;
  }
  wake_.notify_all();
  // Two threads that change the state tell of both changes in their order, whoever comes first.
  const std::lock_guard telling(telling_);
  while (true) {
    ServingState next;
    {
      const std::lock_guard lock(mutex_);
      if (untold_.empty()) return true;
      next = untold_.front();
      untold_.pop_front();
    }
    for (const StateListener& listener : listeners_) listener(next);
  }
}

ServingState ServingLoop::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

ServingLoad ServingLoop::load() const {
  const std::lock_guard lock(mutex_);
  ServingLoad load = load_;
  load.state = state_;
  load.num_queued = static_cast<int64_t>(queue_.size());
  load.num_queued_tokens = queued_tokens_;
  load.predicted_wait_seconds = PredictWait(queued_tokens_);
  load.seconds_since_step = Seconds(ServingClock::now() - last_life_);
  return load;
}

absl::Status ServingLoop::CheckState() const {
  if (state_ == ServingState::kStarting) {
    return WithRetryHint(absl::UnavailableError("the server is starting"), absl::Seconds(1));
  }
  if (state_ == ServingState::kFailed) {
    return absl::UnavailableError(absl::StrCat("the engine failed: ", load_.progress));
  }
  if (state_ != ServingState::kReady) return absl::UnavailableError("the server is draining");
  return absl::OkStatus();
}

absl::Status ServingLoop::CheckRequest(const GenerationRequest& request) const {
  TW_RETURN_IF_ERROR(CheckState());
  // It is written to logs.
  for (const char c : request.id) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(
          absl::StrCat("request id: expected visible ASCII characters, found byte ",
                       static_cast<int>(static_cast<unsigned char>(c))));
    }
  }
  if (live_.contains(request.id)) {
    return absl::AlreadyExistsError(absl::StrCat("request '", request.id, "' is live"));
  }
  if (request.prompt_ids.empty()) {
    return absl::InvalidArgumentError("prompt has no tokens; expected at least one");
  }
  const ModelConfig& config = engine_->rank().config();
  for (size_t i = 0; i < request.prompt_ids.size(); ++i) {
    const int32_t id = request.prompt_ids[i];
    if (id < 0 || id >= config.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", id, " at position ", i,
                                                     " is outside the vocabulary; expected 0 to ",
                                                     config.vocab - 1));
    }
  }
  TW_RETURN_IF_ERROR(ValidateSamplingParams(request.params.sampling));
  if (request.params.max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", request.params.max_tokens, "; expected at least 1"));
  }
  for (const std::string& stop : request.params.stop) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("a stop string of ", stop.size(), " bytes; expected 1 to ", kMaxStopBytes));
    }
  }
  if (request.priority < -kMaxPriority || request.priority > kMaxPriority) {
    return absl::InvalidArgumentError(absl::StrCat("priority ", request.priority, "; expected ",
                                                   -kMaxPriority, " to ", kMaxPriority));
  }
  const auto prompt_size = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t room = config.max_positions - prompt_size;
  if (room < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", prompt_size,
                     " tokens is longer than the context: expected at "
                     "most ",
                     config.max_positions - 1));
  }
  const int64_t growth = std::min(room, request.params.max_tokens);
  for (int group = 0; group < engine_->rank().layout().num_groups(); ++group) {
    const absl::Status fits = engine_->scheduler(group).CheckFits(prompt_size, growth);
    // It never will: no use in trying again.
    if (!fits.ok()) return absl::InvalidArgumentError(fits.message());
  }
  if (request.num_top_log_probs < 0 || request.num_top_log_probs > kMaxTopLogProbs ||
      request.num_top_log_probs > config.vocab) {
    return absl::InvalidArgumentError(
        absl::StrCat("the ", request.num_top_log_probs, " most probable tokens; expected 0 to ",
                     std::min<int64_t>(kMaxTopLogProbs, config.vocab)));
  }
  if (request.num_top_log_probs > 0 && !request.want_log_probs) {
    return absl::InvalidArgumentError(
        "the most probable tokens are wanted, but no log probabilities");
  }
  if (request.want_log_probs) {
    // The first group scores the whole text, of which generation computes all but the last token.
    const absl::Status fits = engine_->scheduler(0).CheckFits(prompt_size + growth, 0);
    if (!fits.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("log probabilities: ", fits.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status ServingLoop::CheckQueue(int64_t num_tokens) const {
  const auto num_queued = static_cast<int64_t>(queue_.size());
  std::string what;
  if (num_queued >= limits_.max_queued_requests) {
    what = absl::StrCat(num_queued, " requests wait; at most ", limits_.max_queued_requests);
  } else if (queued_tokens_ + num_tokens > limits_.max_queued_tokens && num_queued > 0) {
    what = absl::StrCat("requests of ", queued_tokens_, " tokens wait, and this has ", num_tokens,
                        "; at most ", limits_.max_queued_tokens);
  } else if (PredictWait(queued_tokens_) > absl::ToDoubleSeconds(limits_.max_wait)) {
    what = absl::StrFormat("the last of %d requests waits %.1f s; at most %.1f", num_queued,
                           PredictWait(queued_tokens_), absl::ToDoubleSeconds(limits_.max_wait));
  } else {
    return absl::OkStatus();
  }
  return WithRetryHint(absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", what)),
                       RetryDelay());
}

absl::Status ServingLoop::CheckDeadline(const QueueKey& turn,
                                        ServingClock::time_point deadline) const {
  const double patience = Seconds(deadline - ServingClock::now());
  if (patience <= 0.0) {
    return absl::DeadlineExceededError("deadline passed before the request was queued");
  }
  // Without a look at each of the queue where all of it takes no longer.
  if (PredictWait(queued_tokens_) <= patience) return absl::OkStatus();
  int64_t ahead = 0;
  for (auto it = queue_.begin(); it != queue_.end() && it->first < turn; ++it) {
    ahead += it->second->num_tokens;
  }
  const double wait = PredictWait(ahead);
  if (wait <= patience) return absl::OkStatus();
  return WithRetryHint(
      absl::ResourceExhaustedError(
          absl::StrFormat("the queue is too long: %.2f s for a request whose deadline is in %.2f s",
                          wait, patience)),
      RetryDelay());
}

double ServingLoop::PredictWait(int64_t num_tokens) const {
  return queue_rate_ == 0.0 ? 0.0 : static_cast<double>(num_tokens) / queue_rate_;
}

absl::Duration ServingLoop::RetryDelay() const {
  // Half of what waits; before a rate is known, at that of the tokens that come out.
  const double rate = queue_rate_ > 0.0 ? queue_rate_ : std::max(load_.tokens_per_second, 1.0);
  return absl::Seconds(std::clamp(static_cast<double>(queued_tokens_) / rate / 2, 0.1, 30.0));
}

absl::Status ServingLoop::Reject(const absl::Status& why) {
  ++load_.rejected[absl::AsciiStrToLower(absl::StatusCodeToString(why.code()))];
  return why;
}

absl::Status ServingLoop::CheckRoom() {
  const std::lock_guard lock(mutex_);
  absl::Status room = CheckState();
  room.Update(CheckQueue(0));
  return room.ok() ? room : Reject(room);
}

void ServingLoop::CountRejected(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  Reject(why).IgnoreError();
}

absl::StatusOr<std::shared_ptr<Generation>> ServingLoop::Submit(GenerationRequest request) {
  auto active = std::make_unique<Active>();
  std::shared_ptr<Generation> generation = std::make_shared<Generation>(request.id);
  {
    const std::lock_guard lock(mutex_);
    const absl::Status possible = CheckRequest(request);
    if (!possible.ok()) return Reject(possible);
    const int64_t num_tokens = CostOf(request, engine_->rank().config().max_positions);
    const absl::Status room = CheckQueue(num_tokens);
    if (!room.ok()) return Reject(room);
    const QueueKey turn = {MillisecondsNow() - request.priority * kPriorityMs, next_arrival_};
    const absl::Status timely = CheckDeadline(turn, request.deadline);
    if (!timely.ok()) return Reject(timely);
    active->generation = generation;
    active->num_tokens = num_tokens;
    active->submitted = ServingClock::now();
    request.deadline = std::min(
        request.deadline, active->submitted + absl::ToChronoMilliseconds(limits_.max_deadline));
    active->request = std::move(request);
    live_.emplace(generation->id(), generation);
    queued_tokens_ += num_tokens;
    ++next_arrival_;
    queue_.emplace(turn, std::move(active));
  }
  wake_.notify_all();
  return generation;
}

void ServingLoop::Cancel(Generation& generation, const absl::Status& why) {
  generation.RequestCancel(why);
  {
    const std::lock_guard lock(mutex_);
    attention_ = true;
  }
  wake_.notify_all();
}

int64_t ServingLoop::Abort(absl::string_view id, bool prefix) {
  int64_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [live_id, generation] : live_) {
      if (prefix ? !absl::StartsWith(live_id, id) : live_id != id) continue;
      generation->RequestCancel(absl::CancelledError("aborted by the administrator"));
      ++count;
    }
    attention_ = true;
  }
  wake_.notify_all();
  return count;
}

void ServingLoop::Drain(absl::Duration timeout) {
  {
    const std::lock_guard lock(mutex_);
    if (state_ == ServingState::kStopped) return;
    drain_until_ = ServingClock::now() + absl::ToChronoMilliseconds(std::min(timeout, kMaxDrain));
    attention_ = true;
  }
  wake_.notify_all();
  SetState(ServingState::kDraining);
}

void ServingLoop::Fail(const absl::Status& why) {
  if (!SetState(ServingState::kFailed, why.message())) return;
  EndAll(absl::UnavailableError(absl::StrCat("the engine failed: ", why.message())));
}

void ServingLoop::EndAll(const absl::Status& why) {
  std::vector<std::shared_ptr<Generation>> live;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, generation] : live_) live.push_back(generation);
  }
  for (const std::shared_ptr<Generation>& generation : live) {
    GenerationEnd end;
    end.status = why;
    end.reason = EndReason::kError;
    end.num_generated_tokens = generation->num_tokens();
    generation->End(std::move(end), "");
  }
}

absl::Status ServingLoop::Run(Engine& engine, const Tokenizer& tokenizer) {
  {
    const std::lock_guard lock(mutex_);
    engine_ = &engine;
    tokenizer_ = &tokenizer;
    for (int group = 0; group < engine.rank().layout().num_groups(); ++group) {
      const SchedulerLimits limits = engine.rank().scheduler_limits(group);
      load_.kv_pages += limits.num_pages;
      load_.page_size = limits.page_size;
      load_.max_running += limits.max_seqs;
    }
  }
  const absl::Status served = Serve();
  if (served.ok()) {
    SetState(ServingState::kStopped);
  } else {
    Fail(served);
    AccountForLost(served);
  }
  return served;
}

absl::Status ServingLoop::Serve() {
  SetProgress("self-test");
  TW_RETURN_IF_ERROR(SelfTest());
  TW_RETURN_IF_ERROR(Beat());
  SetProgress("");
  SetState(ServingState::kReady);
  while (true) {
    Sweep();
    Admit();
    if (engine_->HasWork()) {
      const ServingClock::time_point start = ServingClock::now();
      TW_RETURN_IF_ERROR(engine_->Step());
      totals_.step.Add(Seconds(ServingClock::now() - start));
      MarkAlive();
      while (!to_score_.empty()) {
        std::unique_ptr<Active> active = std::move(to_score_.back());
        to_score_.pop_back();
        Score(std::move(active));
      }
      Publish(/*idle=*/false);
      if (state() == ServingState::kFailed) return absl::UnavailableError("failed while it ran");
      continue;
    }
    Publish(/*idle=*/true);
    {
      const std::lock_guard lock(mutex_);
      if (state_ == ServingState::kFailed) return absl::UnavailableError(load_.progress);
      if (state_ == ServingState::kDraining && queue_.empty()) return absl::OkStatus();
    }
    if (!WaitForWork()) TW_RETURN_IF_ERROR(Beat());
  }
}

bool ServingLoop::WaitForWork() {
  std::unique_lock lock(mutex_);
  const bool work =
      wake_.wait_until(lock, last_life_ + absl::ToChronoMilliseconds(limits_.heartbeat),
                       [this] { return attention_ || !queue_.empty(); });
  attention_ = false;
  return work;
}

absl::Status ServingLoop::SelfTest() {
  const ModelConfig& config = engine_->rank().config();
  Request request;
  request.prompt_ids = {std::max(config.bos_token_id, 0)};
  request.max_new_tokens = std::min<int64_t>(2, config.max_positions - 1);
  TW_RETURN_IF_ERROR(Annotate(engine_->Submit(std::move(request)).status(), "self-test"));
  while (engine_->HasWork()) TW_RETURN_IF_ERROR(Annotate(engine_->Step(), "self-test"));
  return absl::OkStatus();
}

absl::Status ServingLoop::Beat() {
  TW_ASSIGN_OR_RETURN(const std::vector<RankReport> reports, engine_->CollectReports());
  memory_.clear();
  for (const RankReport& report : reports) memory_.push_back(report.memory);
  MarkAlive();
  Publish(/*idle=*/true);
  return absl::OkStatus();
}

void ServingLoop::MarkAlive() {
  const std::lock_guard lock(mutex_);
  last_life_ = ServingClock::now();
}

void ServingLoop::MeasureQueue(ServingClock::time_point now) {
  constexpr double kWindow = 1.0;   // seconds
  constexpr double kForget = 60.0;  // without a queue: requests may be others by then
  const std::lock_guard lock(mutex_);
  if (queue_.empty()) {
    queue_measures_ = false;  // what ended does not say what could have
    if (Seconds(now - queue_seen_) > kForget) queue_rate_ = 0.0;
    return;
  }
  queue_seen_ = now;
  if (!queue_measures_) {
    queue_measures_ = true;
    queue_since_ = now;
    queue_done_tokens_ = done_tokens_;
    return;
  }
  const double seconds = Seconds(now - queue_since_);
  if (seconds < kWindow || done_tokens_ == queue_done_tokens_) return;
  const double rate = static_cast<double>(done_tokens_ - queue_done_tokens_) / seconds;
  queue_rate_ = queue_rate_ == 0.0 ? rate : (queue_rate_ + rate) / 2;
  queue_since_ = now;
  queue_done_tokens_ = done_tokens_;
}

void ServingLoop::Publish(bool idle) {
  const ServingClock::time_point now = ServingClock::now();
  MeasureQueue(now);
  totals_.engine = engine_->counters();
  // In a split job, other threads write ledgers while there is work.
  if (idle || !engine_->rank().layout().split()) wire_ = engine_->rank().Report().ledger;
  const double seconds = Seconds(now - rate_since_);
  if (seconds >= 1.0) {
    tokens_per_second_ = static_cast<double>(totals_.num_generated_tokens - rate_tokens_) / seconds;
    rate_since_ = now;
    rate_tokens_ = totals_.num_generated_tokens;
  }
  int64_t free_pages = 0;
  for (int group = 0; group < engine_->rank().layout().num_groups(); ++group) {
    free_pages += engine_->scheduler(group).num_free_pages();
  }
  const std::lock_guard lock(mutex_);
  load_.num_running = static_cast<int64_t>(running_.size());
  load_.kv_pages_used = load_.kv_pages - free_pages;
  load_.tokens_per_second = tokens_per_second_;
  load_.wire = wire_;
  load_.memory = memory_;
  load_.totals = totals_;
}

}  // namespace thinwire
