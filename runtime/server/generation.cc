#include "runtime/server/generation.h"

#include <utility>

namespace thinwire {

absl::string_view EndReasonName(EndReason reason) {
  switch (reason) {
    case EndReason::kStop:
      return "stop";
    case EndReason::kStopString:
      return "stop_string";
    case EndReason::kLength:
      return "length";
    case EndReason::kCancelled:
      return "cancelled";
    case EndReason::kDeadline:
      return "deadline";
    case EndReason::kError:
      return "error";
  }
  return "unknown";
}

std::function<void()> Generation::TakeWake() {
  changed_.notify_all();
  return std::exchange(wake_, nullptr);
}

GenerationDelta Generation::Take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(pending_, {});
}

void Generation::WhenReady(std::function<void()> wake) {
  {
    const std::lock_guard lock(mutex_);
    if (pending_.empty()) {
      wake_ = std::move(wake);
      return;
    }
  }
  wake();
}

bool Generation::WaitUntil(ServingClock::time_point until) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, until, [this] { return !pending_.empty(); });
}

void Generation::WhenAbandoned(std::function<void()> abandon) {
  const std::lock_guard lock(mutex_);
  abandon_ = std::move(abandon);
}

void Generation::Push(absl::string_view text, int32_t token_id) {
  std::function<void()> wake;
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    if (pending_.empty()) pending_since_ = ServingClock::now();
    pending_.text.append(text.data(), text.size());
    pending_.token_ids.push_back(token_id);
    ++num_tokens_;
    wake = TakeWake();
  }
  if (wake != nullptr) wake();
}

bool Generation::End(GenerationEnd end, absl::string_view text) {
  std::function<void()> wake;
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return false;
    ended_ = true;
    if (pending_.empty()) pending_since_ = ServingClock::now();
    pending_.text.append(text.data(), text.size());
    pending_.end = std::move(end);
    wake = TakeWake();
  }
  if (wake != nullptr) wake();
  return true;
}

void Generation::Abandon() {
  std::function<void()> abandon;
  {
    const std::lock_guard lock(mutex_);
    abandon = std::exchange(abandon_, nullptr);
  }
  if (abandon != nullptr) abandon();
}

void Generation::RequestCancel(const absl::Status& why) {
  const std::lock_guard lock(mutex_);
  cancelled_.Update(why);
}

absl::Status Generation::cancelled() const {
  const std::lock_guard lock(mutex_);
  return cancelled_;
}

std::optional<ServingClock::time_point> Generation::unread_since() const {
  const std::lock_guard lock(mutex_);
  if (pending_.empty()) return std::nullopt;
  return pending_since_;
}

int64_t Generation::num_tokens() const {
  const std::lock_guard lock(mutex_);
  return num_tokens_;
}

}  // namespace thinwire
