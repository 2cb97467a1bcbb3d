#include "runtime/server/hang_up_watch.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace thinwire {

absl::StatusOr<std::unique_ptr<HangUpWatch>> HangUpWatch::Start() {
  const int poll = epoll_create1(EPOLL_CLOEXEC);
  const int wake = poll < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake < 0) {
    const absl::Status error = absl::ResourceExhaustedError(
        absl::StrCat("cannot watch connections: ", std::strerror(errno)));
    if (poll >= 0) close(poll);
    return error;
  }
  epoll_event event = {.events = EPOLLIN, .data = {.u64 = 0}};
  epoll_ctl(poll, EPOLL_CTL_ADD, wake, &event);
  return std::unique_ptr<HangUpWatch>(new HangUpWatch(poll, wake));
}

HangUpWatch::HangUpWatch(int poll, int wake) : poll_(poll), wake_(wake) {
  thread_ = std::thread([this] { Run(); });
}

HangUpWatch::~HangUpWatch() {
  eventfd_write(wake_, 1);
  thread_.join();
  close(wake_);
  close(poll_);
}

int64_t HangUpWatch::Watch(int socket, std::function<void()> gone) {
  const std::lock_guard lock(mutex_);
  const int64_t watch = next_++;
  watched_[watch] = {socket, std::move(gone)};
  epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT,
                       .data = {.u64 = static_cast<uint64_t>(watch)}};
  epoll_ctl(poll_, EPOLL_CTL_ADD, socket, &event);
  return watch;
}

void HangUpWatch::Forget(int64_t watch) {
  const std::lock_guard lock(mutex_);
  const auto it = watched_.find(watch);
  if (it == watched_.end()) return;
  epoll_ctl(poll_, EPOLL_CTL_DEL, it->second.socket, nullptr);
  watched_.erase(it);
}

void HangUpWatch::Run() {
  std::array<epoll_event, 64> events;
  while (true) {
    const int count = epoll_wait(poll_, events.data(), events.size(), /*timeout=*/-1);
    for (int i = 0; i < count; ++i) {
      const uint64_t watch = events[i].data.u64;
      if (watch == 0) return;
      const std::lock_guard lock(mutex_);
      const auto it = watched_.find(static_cast<int64_t>(watch));
      if (it != watched_.end() && it->second.gone != nullptr) {
        std::exchange(it->second.gone, nullptr)();
      }
    }
  }
}

}  // namespace thinwire
