// What the serving loop does with single requests, on the engine's thread.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/server/serving_loop.h"
#include "runtime/server/serving_loop_active.h"

namespace thinwire {

void ServingLoop::Admit() {
  const int64_t room = load_.max_running;  // fixed since Run began
  while (engine_->num_live() < room) {
    std::unique_ptr<Active> active;
    {
      const std::lock_guard lock(mutex_);
      if (queue_.empty()) return;
      active = std::move(queue_.begin()->second);
      queue_.erase(queue_.begin());
      queued_tokens_ -= active->num_tokens;
      ++load_.num_running;  // until Publish: no moment at which it neither waits nor runs
    }
    Active& started = *active;
    const absl::Status status = Start(std::move(active));
    if (!status.ok()) Finish(started, EndReason::kError, status);
  }
}

absl::Status ServingLoop::Start(std::unique_ptr<Active> active) {
  Active& self = *active;
  self.admitted = ServingClock::now();
  self.decoder.emplace(*tokenizer_, /*skip_special_tokens=*/true);
  self.stop = StopText(self.request.params.stop);
  Request request;
  request.prompt_ids = self.request.prompt_ids;
  request.max_new_tokens = self.request.params.max_tokens;
  request.sampling = self.request.params.sampling;
  request.share_salt = self.request.share_salt;
  request.stop_token_ids = self.request.stop_token_ids;
  if (!self.request.params.ignore_eos) {
    const std::vector<int32_t>& eos = engine_->rank().config().eos_token_ids;
    request.stop_token_ids.insert(request.stop_token_ids.end(), eos.begin(), eos.end());
  }
  request.on_token = [this, &self](int32_t token_id) { return TakeToken(self, token_id); };
  request.on_done = [this, &self](Completion completion) {
    OnDone(self, completion.finish_reason);
  };
  const absl::StatusOr<int64_t> id = engine_->Submit(std::move(request));
  // Kept either way, for the caller to finish.
  self.engine_id = id.ok() ? *id : -1;
  running_.emplace(self.engine_id, std::move(active));
  if (!id.ok()) return id.status();
  totals_.num_prompt_tokens += static_cast<int64_t>(self.request.prompt_ids.size());
  totals_.queue.Add(Seconds(*self.admitted - self.submitted));
  return absl::OkStatus();
}

bool ServingLoop::TakeToken(Active& active, int32_t token_id) {
  const ServingClock::time_point now = ServingClock::now();
  if (active.first_token.has_value()) {
    totals_.itl.Add(Seconds(now - *active.last_token));
  } else {
    active.first_token = now;
    totals_.ttft.Add(Seconds(now - active.submitted));
    totals_.prefill.Add(Seconds(now - *active.admitted));
  }
  active.last_token = now;
  active.token_ids.push_back(token_id);
  ++totals_.num_generated_tokens;
  active.generation->Push(active.stop.Push(active.decoder->Push(token_id)), token_id);
  return !active.stop.stopped();
}

void ServingLoop::OnDone(Active& active, FinishReason reason) {
  if (reason == FinishReason::kScored) {
    Finish(active, active.reason, absl::OkStatus());
    return;
  }
  active.last_text = active.stop.Push(active.decoder->Flush());
  active.last_text += active.stop.Flush();
  active.reason = active.stop.stopped()             ? EndReason::kStopString
                  : reason == FinishReason::kLength ? EndReason::kLength
                                                    : EndReason::kStop;
  if (!active.request.want_log_probs) {
    Finish(active, active.reason, absl::OkStatus());
    return;
  }
  const auto it = running_.find(active.engine_id);
  to_score_.push_back(std::move(it->second));
  running_.erase(it);
}

void ServingLoop::Score(std::unique_ptr<Active> active) {
  Active& self = *active;
  Request request;
  request.prompt_ids = self.request.prompt_ids;
  request.prompt_ids.insert(request.prompt_ids.end(), self.token_ids.begin(), self.token_ids.end());
  request.score_prompt = true;
  request.score_begin = static_cast<int64_t>(self.request.prompt_ids.size());
  request.num_top = static_cast<int32_t>(self.request.num_top_log_probs);
  request.on_done = [this, &self](Completion completion) {
    const std::vector<float>& all = completion.prompt_log_probs;
    self.log_probs.assign(all.end() - static_cast<int64_t>(self.token_ids.size()), all.end());
    self.top_log_probs = std::move(completion.prompt_top);
    OnDone(self, completion.finish_reason);
  };
  const absl::StatusOr<int64_t> id = engine_->Submit(std::move(request));
  if (!id.ok()) {
    Finish(self, EndReason::kError, Annotate(id.status(), "log probabilities"));
    return;
  }
  self.engine_id = *id;
  running_.emplace(self.engine_id, std::move(active));
}

void ServingLoop::AccountForLost(const absl::Status& why) {
  std::vector<std::unique_ptr<Active>> lost = std::move(to_score_);
  to_score_.clear();
  for (auto& [id, active] : running_) lost.push_back(std::move(active));
  running_.clear();
  {
    const std::lock_guard lock(mutex_);
    for (auto& [turn, active] : queue_) lost.push_back(std::move(active));
    queue_.clear();
    queued_tokens_ = 0;
  }
  for (const std::unique_ptr<Active>& active : lost) Finish(*active, EndReason::kError, why);
  Publish(/*idle=*/false);
}

absl::Status ServingLoop::WhyEnd(const Active& active, ServingClock::time_point now) const {
  TW_RETURN_IF_ERROR(active.generation->cancelled());
  if (now >= active.request.deadline) {
    return absl::DeadlineExceededError(
        absl::StrCat("deadline passed ", active.engine_id < 0 ? "in the queue" : "while generating",
                     " after ", active.token_ids.size(), " tokens"));
  }
  const auto unread = active.generation->unread_since();
  if (unread.has_value() &&
      now - *unread > absl::ToChronoMilliseconds(limits_.slow_reader_timeout)) {
    return absl::AbortedError(absl::StrCat("the client read nothing for ",
                                           absl::FormatDuration(limits_.slow_reader_timeout)));
  }
  return absl::OkStatus();
}

void ServingLoop::Sweep() {
  const ServingClock::time_point now = ServingClock::now();
  absl::Status for_all;
  std::vector<std::pair<std::unique_ptr<Active>, absl::Status>> ended;
  {
    const std::lock_guard lock(mutex_);
    attention_ = false;
    if (state_ == ServingState::kDraining && now >= drain_until_) {
      for_all = absl::UnavailableError("the server stopped before the request was done");
    }
    for (auto it = queue_.begin(); it != queue_.end();) {
      absl::Status why = for_all.ok() ? WhyEnd(*it->second, now) : for_all;
      if (why.ok()) {
        ++it;
        continue;
      }
      queued_tokens_ -= it->second->num_tokens;
      ended.emplace_back(std::move(it->second), std::move(why));
      it = queue_.erase(it);
    }
  }
  std::vector<std::pair<int64_t, absl::Status>> stopped;
  for (const auto& [id, active] : running_) {
    absl::Status why = for_all.ok() ? WhyEnd(*active, now) : for_all;
    if (!why.ok()) stopped.emplace_back(id, std::move(why));
  }
  for (auto& [id, why] : stopped) {
    engine_->Cancel(id);
    const auto it = running_.find(id);
    ended.emplace_back(std::move(it->second), std::move(why));
    running_.erase(it);
  }
  for (const auto& [active, why] : ended) {
    const EndReason reason = absl::IsDeadlineExceeded(why) ? EndReason::kDeadline
                             : absl::IsUnavailable(why)    ? EndReason::kError
                                                           : EndReason::kCancelled;
    Finish(*active, reason, why);
    if (absl::IsAborted(why)) active->generation->Abandon();
  }
  SweepUnread(now);
}

void ServingLoop::SweepUnread(ServingClock::time_point now) {
  std::vector<std::shared_ptr<Generation>> abandoned;
  {
    const std::lock_guard lock(mutex_);
    const auto taken = [&](const std::shared_ptr<Generation>& generation) {
      const auto unread = generation->unread_since();
      if (!unread.has_value() || generation.use_count() == 1) return true;
      if (now - *unread <= absl::ToChronoMilliseconds(limits_.slow_reader_timeout)) return false;
      abandoned.push_back(generation);
      return true;
    };
    unread_.erase(std::remove_if(unread_.begin(), unread_.end(), taken), unread_.end());
  }
  for (const std::shared_ptr<Generation>& generation : abandoned) generation->Abandon();
}

void ServingLoop::Finish(Active& active, EndReason reason, const absl::Status& status) {
  const ServingClock::time_point now = ServingClock::now();
  GenerationEnd end;
  end.status = status;
  end.reason = reason;
  end.num_prompt_tokens = static_cast<int64_t>(active.request.prompt_ids.size());
  end.num_generated_tokens = static_cast<int64_t>(active.token_ids.size());
  if (status.ok()) {
    end.log_probs = std::move(active.log_probs);
    end.top_log_probs = std::move(active.top_log_probs);
  }
  const ServingClock::time_point admitted = active.admitted.value_or(now);
  const ServingClock::time_point first = active.first_token.value_or(now);
  end.queue_ms = Seconds(admitted - active.submitted) * 1e3;
  end.prefill_ms = Seconds(first - admitted) * 1e3;
  end.decode_ms = Seconds(now - first) * 1e3;
  if (active.admitted.has_value()) done_tokens_ += active.num_tokens;
  totals_.e2e.Add(Seconds(now - active.submitted));
  if (active.first_token.has_value()) totals_.decode.Add(Seconds(now - first));
  ++totals_.ended[std::string(EndReasonName(reason))];
  if (end_listener_ != nullptr) end_listener_(active.request, end);
  const std::shared_ptr<Generation> generation = active.generation;
  {
    const std::lock_guard lock(mutex_);
    live_.erase(generation->id());
    unread_.push_back(generation);
  }
  const std::string text = std::move(active.last_text);
  running_.erase(active.engine_id);  // where it runs; `active` may be gone now
  generation->End(std::move(end), text);
}

}  // namespace thinwire
