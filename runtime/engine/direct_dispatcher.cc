#include <deque>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/engine/dispatcher.h"

namespace thinwire {
namespace {

class DirectDispatcher final : public Dispatcher {
 public:
  explicit DirectDispatcher(EngineRank* rank) : rank_(rank) {
    TW_CHECK_EQ(rank->layout().num_groups(), 1);
  }

  absl::Status Post(int group, StepPlan plan) override {
    TW_ASSIGN_OR_RETURN(StepResult result, rank_->Lead(group, plan));
    if (rank_->samples_here(group)) own_results_.push_back(std::move(result));
    return absl::OkStatus();
  }

  absl::StatusOr<GroupResult> Next() override {
    GroupResult next;
    if (!rank_->samples_here(next.group)) {
      TW_ASSIGN_OR_RETURN(next.result, rank_->ReceiveResult(next.group));
      return next;
    }
    TW_CHECK(!own_results_.empty());
    next.result = std::move(own_results_.front());
    own_results_.pop_front();
    return next;
  }

  absl::Status Settle() override { return absl::OkStatus(); }

 private:
  EngineRank* rank_;
  std::deque<StepResult> own_results_;  // of steps in flight
};

}  // namespace

std::unique_ptr<Dispatcher> MakeDirectDispatcher(EngineRank* rank) {
  return std::make_unique<DirectDispatcher>(rank);
}

}  // namespace thinwire
