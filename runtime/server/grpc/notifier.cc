#include "runtime/server/grpc/notifier.h"

#include <utility>

namespace thinwire {

Notifier::Notifier() : thread_([this] { Run(); }) {}

Notifier::~Notifier() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Notifier::Post(std::function<void()> call) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = calls_.empty();
    calls_.push_back(std::move(call));
  }
  if (first) changed_.notify_one();
}

void Notifier::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !calls_.empty(); });
    if (calls_.empty()) return;
    std::deque<std::function<void()>> calls = std::exchange(calls_, {});
    lock.unlock();
    for (const std::function<void()>& call : calls) call();
    calls.clear();
    lock.lock();
  }
}

}  // namespace thinwire
