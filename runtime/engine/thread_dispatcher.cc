#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/engine/dispatcher.h"

namespace thinwire {
namespace {

using Clock = std::chrono::steady_clock;

// Ranks wait for a plan as long as a step may take; they hear of the leader this often meanwhile.
constexpr int kSignsOfLife = 4;

class ThreadDispatcher final : public Dispatcher {
 public:
  explicit ThreadDispatcher(EngineRank* rank)
      : rank_(rank),
        idle_interval_(absl::ToChronoNanoseconds(rank->options().step_timeout) / kSignsOfLife),
        groups_(rank->layout().num_groups()) {
    for (size_t group = 0; group < groups_.size(); ++group) {
      groups_[group].last_plan = Clock::now();
      groups_[group].thread = std::thread([this, group] { Drive(static_cast<int>(group)); });
    }
  }

  ~ThreadDispatcher() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (Group& group : groups_) group.thread.join();
  }

  absl::Status Post(int group, StepPlan plan) override {
    {
      const std::lock_guard lock(mutex_);
      TW_RETURN_IF_ERROR(failure_);
      groups_[group].plans.push_back(std::move(plan));
    }
    changed_.notify_all();
    return absl::OkStatus();
  }

  absl::StatusOr<GroupResult> Next() override {
    std::unique_lock lock(mutex_);
    while (true) {
      TW_RETURN_IF_ERROR(failure_);
      const Clock::time_point now = Clock::now();
      for (Group& group : groups_) {
        if (!group.idle() || now - group.last_plan < idle_interval_) continue;
        group.plans.push_back({.kind = StepPlan::Kind::kIdle});
        changed_.notify_all();
      }
      if (!results_.empty()) break;
      changed_.wait_for(lock, idle_interval_);
    }
    GroupResult next = std::move(results_.front());
    results_.pop_front();
    return next;
  }

  absl::Status Settle() override {
    std::unique_lock lock(mutex_);
    const auto settled = [this] {
      for (const Group& group : groups_) {
        if (!group.idle()) return false;
      }
      return true;
    };
    changed_.wait(lock, [&] { return !failure_.ok() || settled(); });
    return failure_;
  }

 private:
  struct Group {
    std::deque<StepPlan> plans;  // not yet begun
    int64_t num_awaited = 0;     // results
    bool busy = false;
    Clock::time_point last_plan;
    std::thread thread;

    bool idle() const { return plans.empty() && num_awaited == 0 && !busy; }
  };

  // The thread of one group: leads all plans that there are, then waits for the oldest result; at
  // once where this rank has it.
  void Drive(int index) {
    Group& group = groups_[index];
    const bool samples_here = rank_->samples_here(index);
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] {
        return stopping_ || !failure_.ok() || !group.plans.empty() || group.num_awaited > 0;
      });
      if (stopping_ || !failure_.ok()) return;
      group.busy = true;
      if (!group.plans.empty() && !(samples_here && group.num_awaited > 0)) {
        const StepPlan plan = std::move(group.plans.front());
        group.plans.pop_front();
        group.last_plan = Clock::now();
        lock.unlock();
        const absl::Status led = rank_->Lead(index, plan);
        lock.lock();
        failure_.Update(led);
        if (led.ok() && plan.kind == StepPlan::Kind::kRun) ++group.num_awaited;
      } else {
        lock.unlock();
        absl::StatusOr<StepResult> result = rank_->ReceiveResult(index);
        lock.lock();
        --group.num_awaited;
        if (result.ok()) {
          results_.push_back({index, *std::move(result)});
        } else {
          failure_.Update(result.status());
        }
      }
      group.busy = false;
      changed_.notify_all();
    }
  }

  EngineRank* rank_;
  const std::chrono::nanoseconds idle_interval_;

  std::mutex mutex_;  // guards what follows, but the threads
  std::condition_variable changed_;
  std::vector<Group> groups_;
  std::deque<GroupResult> results_;
  absl::Status failure_;
  bool stopping_ = false;
};

}  // namespace

std::unique_ptr<Dispatcher> MakeThreadDispatcher(EngineRank* rank) {
  return std::make_unique<ThreadDispatcher>(rank);
}

}  // namespace thinwire
