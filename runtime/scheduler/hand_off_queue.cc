#include "runtime/scheduler/hand_off_queue.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace thinwire {

void HandOffQueue::Add(SeqId id, int64_t num_tokens) {
  ready_.emplace(id, Ready{num_tokens, from_->Hold(id)});
}

std::vector<MovingSeq> HandOffQueue::Depart() {
  std::vector<MovingSeq> seqs;
  while (!ready_.empty()) {
    const auto [id, ready] = *ready_.begin();
    std::optional<Binding> binding = to_->Adopt(id, ready.num_tokens);
    if (!binding.has_value()) break;
    seqs.push_back({id, ready.num_tokens - 1, ready.slot, *std::move(binding)});
    from_->Finish(id);
    ready_.erase(ready_.begin());
    departed_.push_back({seqs.back(), from_->num_planned_steps()});
  }
  return seqs;
}

std::vector<MovingSeq> HandOffQueue::Arrive() {
  std::vector<MovingSeq> seqs;
  while (!departed_.empty() && departed_.front().after_step <= from_->num_committed_steps()) {
    Departed departed = std::move(departed_.front());
    departed_.pop_front();
    if (departed.cancelled) {
      to_->Finish(departed.seq.id);
    } else {
      to_->Resume(departed.seq.id);
    }
    seqs.push_back(std::move(departed.seq));
  }
  return seqs;
}

bool HandOffQueue::Cancel(SeqId id) {
  if (ready_.erase(id) > 0) {
    from_->Finish(id);
    return true;
  }
  const auto departed = std::find_if(departed_.begin(), departed_.end(),
                                     [&](const Departed& other) { return other.seq.id == id; });
  if (departed == departed_.end()) return false;
  departed->cancelled = true;
  return true;
}

}  // namespace thinwire
