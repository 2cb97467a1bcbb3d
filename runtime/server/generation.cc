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

void Generation::Announce(std::unique_lock<std::mutex> lock) {
  pending_since_ = ServingClock::now();
  const std::function<void()> wake = std::exchange(wake_, nullptr);
  lock.unlock();  // or the reader would wake only to wait for it
  changed_.notify_all();
  if (wake != nullptr) wake();
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
  std::unique_lock lock(mutex_);
  if (ended_) return;
  const bool first = pending_.empty();
  pending_.text.append(text.data(), text.size());
  pending_.token_ids.push_back(token_id);
  ++num_tokens_;
  if (first) Announce(std::move(lock));
}

bool Generation::End(GenerationEnd end, absl::string_view text) {
  std::unique_lock lock(mutex_);
  if (ended_) return false;
  ended_ = true;
  const bool first = pending_.empty();
  pending_.text.append(text.data(), text.size());
  pending_.end = std::move(end);
  if (first) Announce(std::move(lock));
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
