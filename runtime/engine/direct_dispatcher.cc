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

  absl::Status Post(int group, StepPlan plan) override { return rank_->Lead(group, plan); }

  absl::StatusOr<GroupResult> Next() override {
    GroupResult next;
    TW_ASSIGN_OR_RETURN(next.result, rank_->ReceiveResult(next.group));
    return next;
  }

  absl::Status Settle() override { return absl::OkStatus(); }

 private:
  EngineRank* rank_;
};

}  // namespace

std::unique_ptr<Dispatcher> MakeDirectDispatcher(EngineRank* rank) {
  return std::make_unique<DirectDispatcher>(rank);
}

}  // namespace thinwire
