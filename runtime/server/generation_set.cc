#include "runtime/server/generation_set.h"

#include <condition_variable>
#include <deque>
#include <mutex>

namespace thinwire {

struct GenerationSet::Ready {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<size_t> indices;
};

GenerationSet::GenerationSet(std::vector<std::shared_ptr<Generation>> generations)
    : generations_(std::move(generations)), ready_(std::make_shared<Ready>()) {
  for (size_t i = 0; i < generations_.size(); ++i) Arm(i);
}

void GenerationSet::Arm(size_t index) {
  generations_[index]->WhenReady([ready = ready_, index] {
    {
      const std::lock_guard lock(ready->mutex);
      ready->indices.push_back(index);
    }
    ready->changed.notify_one();
  });
}

std::optional<std::pair<size_t, GenerationDelta>> GenerationSet::Next(
    ServingClock::time_point until) {
  size_t index = 0;
  {
    std::unique_lock lock(ready_->mutex);
    if (!ready_->changed.wait_until(lock, until, [this] { return !ready_->indices.empty(); })) {
      return std::nullopt;
    }
    index = ready_->indices.front();
    ready_->indices.pop_front();
  }
  GenerationDelta delta = generations_[index]->Take();
  if (delta.end.has_value()) {
    ++num_ended_;
  } else {
    Arm(index);
  }
  return std::pair(index, std::move(delta));
}

}  // namespace thinwire
