#include "parallel/comm/local_communicator.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/host_communicator.h"

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;

// Looks at the inbox this often, yielding in between, before it sleeps.
constexpr int kSpins = 20;

struct Message {
  std::unique_ptr<std::byte[]> data;
  int64_t bytes = 0;
};

// What one rank has been sent and has not received yet.
struct Inbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::deque<Message>> queues;  // [channel * size + sender]
  std::vector<bool> departed;               // [sender]: destroyed its communicator
};

// What the ranks of one group share. Owned by their transports; the last one frees it.
class Group {
 public:
  explicit Group(int size) : inboxes_(size) {
    for (Inbox& inbox : inboxes_) {
      inbox.queues.resize(2 * static_cast<size_t>(size));
      inbox.departed.resize(size);
    }
  }

  int size() const { return static_cast<int>(inboxes_.size()); }

  // Also ends all groups split from this one. The first failure is kept.
  void Fail(int rank, const absl::Status& why) {
    std::vector<std::shared_ptr<Group>> children;
    {
      const std::lock_guard lock(mutex_);
      if (failed_.load(std::memory_order_relaxed)) return;
      failed_rank_ = rank;
      cause_ = why;
      failed_.store(true, std::memory_order_release);
      for (const std::weak_ptr<Group>& child : children_) {
        if (std::shared_ptr<Group> alive = child.lock()) children.push_back(std::move(alive));
      }
    }
    for (Inbox& inbox : inboxes_) {
      // With the lock held, no receiver is between its last look at failed_ and its sleep.
      const std::lock_guard lock(inbox.mutex);
      inbox.changed.notify_all();
    }
    for (const std::shared_ptr<Group>& child : children) child->Fail(-1, failure(-1));
  }

  bool failed() const { return failed_.load(std::memory_order_acquire); }

  // The failure as rank `rank` sees it: its own, or that another rank failed.
  absl::Status failure(int rank) const {
    if (!failed()) return absl::OkStatus();
    const std::lock_guard lock(mutex_);
    if (failed_rank_ == rank || failed_rank_ < 0) return cause_;
    return absl::UnavailableError(
        absl::StrCat("rank ", failed_rank_, " failed: ", cause_.message()));
  }

  void Put(int from, Channel channel, const OutgoingMessage& outgoing) {
    Message message;
    message.bytes = outgoing.bytes;
    if (outgoing.bytes > 0) {
      message.data = std::make_unique_for_overwrite<std::byte[]>(outgoing.bytes);
      std::memcpy(message.data.get(), outgoing.data, outgoing.bytes);
    }
    Inbox& inbox = inboxes_[outgoing.peer];
    const std::lock_guard lock(inbox.mutex);
    Queue(inbox, channel, from).push_back(std::move(message));
    inbox.changed.notify_one();
  }

  absl::StatusOr<Message> Take(int rank, Channel channel, int from, absl::Duration timeout) {
    Inbox& inbox = inboxes_[rank];
    std::deque<Message>& queue = Queue(inbox, channel, from);
    const auto ready = [&] { return !queue.empty() || failed() || inbox.departed[from]; };
    std::unique_lock lock(inbox.mutex);
    for (int spin = 0; spin < kSpins && !ready(); ++spin) {
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
    const absl::Duration wait = std::clamp(timeout, absl::ZeroDuration(), absl::Hours(24 * 365));
    const Clock::time_point deadline = Clock::now() + absl::ToChronoNanoseconds(wait);
    if (!inbox.changed.wait_until(lock, deadline, ready)) {
      return absl::DeadlineExceededError(absl::StrCat("rank ", rank, " received nothing from rank ",
                                                      from, " for ",
                                                      absl::FormatDuration(timeout)));
    }
    if (queue.empty()) {
      if (failed()) return failure(rank);
      return absl::UnavailableError(
          absl::StrCat("rank ", from, " left while rank ", rank, " waited for it"));
    }
    Message message = std::move(queue.front());
    queue.pop_front();
    return message;
  }

  void Leave(int rank) {
    for (Inbox& inbox : inboxes_) {
      const std::lock_guard lock(inbox.mutex);
      inbox.departed[rank] = true;
      inbox.changed.notify_all();
    }
  }

  // The group that the first caller of (id, color) makes and the other size - 1 ranks of it find.
  std::shared_ptr<Group> Child(int64_t id, int color, int size) {
    const std::lock_guard lock(mutex_);
    const auto [it, inserted] = meetings_.try_emplace({id, color});
    Meeting& meeting = it->second;
    if (inserted) {
      meeting = {std::make_shared<Group>(size), size};
      std::erase_if(children_, [](const std::weak_ptr<Group>& child) { return child.expired(); });
      children_.push_back(meeting.group);
      if (failed()) meeting.group->Fail(-1, absl::UnavailableError(cause_.message()));
    }
    std::shared_ptr<Group> child = meeting.group;
    if (--meeting.missing == 0) meetings_.erase(it);
    return child;
  }

 private:
  struct Meeting {
    std::shared_ptr<Group> group;
    int missing = 0;
  };

  std::deque<Message>& Queue(Inbox& inbox, Channel channel, int from) {
    return inbox.queues[static_cast<int>(channel) * size() + from];
  }

  std::vector<Inbox> inboxes_;

  std::atomic<bool> failed_ = false;
  mutable std::mutex mutex_;  // guards what follows
  int failed_rank_ = -1;      // -1: the group that this one was split from
  absl::Status cause_;
  std::vector<std::weak_ptr<Group>> children_;
  std::map<std::pair<int64_t, int>, Meeting> meetings_;
};

class LocalTransport final : public HostTransport {
 public:
  LocalTransport(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  ~LocalTransport() override { group_->Leave(rank_); }

  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }

  absl::Status Exchange(Channel channel, absl::Span<const OutgoingMessage> outgoing,
                        absl::Span<const IncomingMessage> incoming) override {
    TW_RETURN_IF_ERROR(failure());
    for (const OutgoingMessage& message : outgoing) group_->Put(rank_, channel, message);
    for (const IncomingMessage& wanted : incoming) {
      absl::StatusOr<Message> message = group_->Take(rank_, channel, wanted.peer, timeout_);
      if (!message.ok()) return Fail(message.status());
      if (message->bytes != wanted.bytes) {
        return Fail(absl::InternalError(absl::StrCat("rank ", rank_, " expected ", wanted.bytes,
                                                     " bytes from rank ", wanted.peer,
                                                     " and received ", message->bytes)));
      }
      if (wanted.bytes > 0) std::memcpy(wanted.data, message->data.get(), wanted.bytes);
    }
    return absl::OkStatus();
  }

  absl::Status SendBuffered(Channel channel, const OutgoingMessage& message) override {
    TW_RETURN_IF_ERROR(failure());
    group_->Put(rank_, channel, message);
    return absl::OkStatus();
  }

  int64_t NewSplitId() override { return next_split_++; }

  absl::StatusOr<std::unique_ptr<HostTransport>> Split(int64_t id, int color,
                                                       absl::Span<const int> ranks) override {
    const auto self = std::find(ranks.begin(), ranks.end(), rank_);
    TW_CHECK(self != ranks.end());
    return std::make_unique<LocalTransport>(
        group_->Child(id, color, static_cast<int>(ranks.size())),
        static_cast<int>(self - ranks.begin()));
  }

  void set_timeout(absl::Duration timeout) override { timeout_ = timeout; }

  void Abort(const absl::Status& why) override {
    group_->Fail(
        -1, absl::UnavailableError(absl::StrCat("aborted by rank ", rank_, ": ", why.message())));
  }

  absl::Status failure() const override { return group_->failure(rank_); }

 private:
  // Ends the group, and returns its first failure, which may be another one.
  absl::Status Fail(const absl::Status& why) {
    group_->Fail(rank_, why);
    return failure();
  }

  const std::shared_ptr<Group> group_;
  const int rank_;
  absl::Duration timeout_;
  int64_t next_split_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> CreateLocalCommunicators(int size) {
  TW_CHECK_GE(size, 1);
  const auto group = std::make_shared<Group>(size);
  std::vector<std::unique_ptr<Communicator>> communicators;
  communicators.reserve(size);
  for (int rank = 0; rank < size; ++rank) {
    communicators.push_back(
        std::make_unique<HostCommunicator>(std::make_unique<LocalTransport>(group, rank)));
  }
  return communicators;
}

}  // namespace thinwire
