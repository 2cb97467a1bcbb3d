// One rank of an engine: its shard of the model, its cache, its wires.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/communicator.h"
#include "parallel/plan/mesh.h"
#include "parallel/wire/wire.h"
#include "runtime/engine/engine_options.h"
#include "runtime/engine/group_control.h"
#include "runtime/engine/kv_hand_off.h"
#include "runtime/engine/rank_layout.h"
#include "runtime/engine/rank_report.h"
#include "runtime/engine/stage_runner.h"
#include "runtime/engine/step_plan.h"
#include "runtime/engine/step_watchdog.h"
#include "runtime/engine/stream_watch.h"
#include "runtime/scheduler/scheduler.h"

namespace thinwire {

// Every rank has one; on ranks other than 0 all that happens is Follow(). Not movable: parts point
// at each other. Thread-compatible, but that different groups may be led by different threads.
//
// Groups. In a split job each group of ranks is a mesh of its own, with its own plans. Rank 0 leads
// both: it is in the first, and sends the second plans that it does not execute itself. Each group
// has its communicators; the job's carries sequences from group to group, and the news of a failure
// to all ranks.
class EngineRank {
 public:
  // Collective over `world`, whose size is the layout's. Loads this rank's shard, and returns the
  // same error on all ranks when any of them fails. `world` and `pool` are borrowed. `progress` is
  // told of layers loaded.
  static absl::StatusOr<std::unique_ptr<EngineRank>> Create(const EngineOptions& options,
                                                            const RankLayout& layout,
                                                            Communicator* world, ThreadPool* pool,
                                                            const LoadProgress& progress = nullptr);

  ~EngineRank();
  EngineRank(const EngineRank&) = delete;
  EngineRank& operator=(const EngineRank&) = delete;

  // Ranks other than 0: executes the leader's plans until kStop. When a step fails here, all ranks'
  // waits are aborted with its cause.
  absl::Status Follow();

  // Rank 0. Sends a plan to all other ranks of a group; then each rank of it executes it, but that
  // a kRun plan may only have been launched.
  absl::Status Lead(int group, const StepPlan& plan);

  // Rank 0: the result of the oldest kRun plan not yet received. Waits for it.
  absl::StatusOr<StepResult> ReceiveResult(int group);

  // Whether this rank samples for a group, so that ReceiveResult needs no other.
  bool samples_here(int group) const {
    return group == group_ && SamplerOf(group) == layout_.RankInGroup(rank());
  }

  // Rank 0, which leads no plan meanwhile: reports of all ranks, by rank.
  absl::StatusOr<std::vector<RankReport>> CollectReports();

  const ModelConfig& config() const { return decoder_->config(); }
  const RankLayout& layout() const { return layout_; }
  const Mesh& mesh() const { return layout_.mesh(group_); }  // of this rank's group
  const EngineOptions& options() const { return options_; }
  int rank() const { return world_->rank(); }
  SchedulerLimits scheduler_limits(int group) const;
  RankReport Report() const;
  // What --wire auto goes by on this rank's stage; null without it or with one rank a stage.
  const StrategyTable* strategy_table() const { return wire_->table(); }
  // How long ago it was measured; zero: by this job.
  absl::Duration strategies_age() const { return strategies_age_; }

 private:
  EngineRank(const EngineOptions& options, const RankLayout& layout, Communicator* world,
             ThreadPool* pool);

  // FailedPrecondition where ranks were started with other flags or folders.
  absl::Status AgreeOnTheJob();
  bool on_gpu() const { return options_.device != Device::Cpu(); }
  // Where tensors are on a GPU: its stream.
  absl::Status OpenDevice();
  absl::Status Load(const LoadProgress& progress);
  // Communicators of groups, and of the leader with the groups that it is not in.
  absl::Status SplitWorld();
  // Where tensors are on GPUs: what carries them between tensor-parallel ranks; and between stages,
  // with bounded waits for the stream. Ranks agree in between, as they may fail on some.
  absl::Status ConnectTensorRanks();
  absl::Status ConnectStages();
  absl::Status Connect(std::unique_ptr<Communicator>& ranks) const;
  // Pages that the smallest budget among the ranks of a group holds.
  absl::Status AllocateCache();
  absl::Status ConnectWires();
  absl::Status Execute(const StepPlan& plan);
  // Calls `run`, which may wait for the GPU, and ends the process where it hangs.
  template <typename Run>
  auto Watched(int64_t step, const Run& run);
  // Tells all ranks of the job why it ends.
  absl::Status Abort(const absl::Status& why);
  int SamplerOf(int group) const {
    return layout_.mesh(group).RankOf(layout_.mesh(group).pp_size - 1, 0);
  }
  Communicator& group_ranks() { return group_ranks_ == nullptr ? *world_ : *group_ranks_; }

  const EngineOptions options_;
  const RankLayout layout_;
  const int group_;  // of this rank
  Communicator* const world_;
  Stream host_stream_;  // what ranks tell each other beside tensors
  Stream stream_;
  Ledger ledger_;
  std::vector<int64_t> num_pages_;             // by group
  std::unique_ptr<Communicator> group_ranks_;  // null: all ranks of the job
  std::unique_ptr<Communicator> tp_;
  std::unique_ptr<Communicator> stages_;  // of the group's GPUs; null: group_ranks() carries hops
  std::optional<StreamWatch> watch_;      // of stream_, on a GPU
  std::vector<std::unique_ptr<GroupControl>> controls_;  // by group; null: not this rank's
  std::optional<Wire> wire_;
  absl::Duration strategies_age_;
  std::optional<Decoder> decoder_;
  std::optional<PagedKvCache> cache_;
  bool noisy_ = false;  // whether noise is what the cache holds of tokens never computed
  std::optional<StageRunner> runner_;
  std::optional<KvHandOff> hand_off_;     // of a split job
  std::optional<StepWatchdog> watchdog_;  // on a GPU
};

}  // namespace thinwire
