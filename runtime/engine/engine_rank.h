// One rank of an engine: its shard of the model, its cache, its wires.
#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/communicator.h"
#include "parallel/plan/mesh.h"
#include "parallel/wire/wire.h"
#include "runtime/engine/engine_options.h"
#include "runtime/engine/memory_report.h"
#include "runtime/engine/stage_runner.h"
#include "runtime/engine/step_plan.h"
#include "runtime/scheduler/scheduler.h"

namespace thinwire {

// What a rank tells about itself at the end.
struct RankReport {
  Ledger ledger;
  MemoryReport memory;

  std::string Serialize() const;
  static absl::StatusOr<RankReport> Parse(absl::string_view bytes);
};

// Every rank has one; on ranks other than 0 all that happens is Follow(). Not movable: parts point
// at each other. Thread-compatible.
class EngineRank {
 public:
  // Collective over `world`, whose size is the mesh's. Loads this rank's shard, and returns the
  // same error on all ranks when any of them fails. `world` and `pool` are borrowed. `progress` is
  // told of layers loaded.
  static absl::StatusOr<std::unique_ptr<EngineRank>> Create(const EngineOptions& options,
                                                            const Mesh& mesh, Communicator* world,
                                                            ThreadPool* pool,
                                                            const LoadProgress& progress = nullptr);

  EngineRank(const EngineRank&) = delete;
  EngineRank& operator=(const EngineRank&) = delete;

  // Ranks other than 0: executes the leader's plans until kStop. When a step fails here, all ranks'
  // waits are aborted with its cause.
  absl::Status Follow();

  // Rank 0. Sends a plan to all other ranks; then each rank, this one included, executes it. For
  // kRun the result is of this rank: empty unless it samples.
  absl::StatusOr<StepResult> Lead(const StepPlan& plan);

  // Rank 0, with several stages: the result of the oldest kRun plan not yet received.
  absl::StatusOr<StepResult> ReceiveResult();

  // Rank 0: reports of all ranks, by rank.
  absl::StatusOr<std::vector<RankReport>> CollectReports();

  const ModelConfig& config() const { return decoder_->config(); }
  const Mesh& mesh() const { return mesh_; }
  const EngineOptions& options() const { return options_; }
  int rank() const { return world_->rank(); }
  SchedulerLimits scheduler_limits() const;
  RankReport Report() const;
  // What --wire auto goes by on this rank's stage; null without it or with one rank a stage.
  const StrategyTable* strategy_table() const { return wire_->table(); }
  // How long ago it was measured; zero: by this job.
  absl::Duration strategies_age() const { return strategies_age_; }

 private:
  EngineRank(const EngineOptions& options, const Mesh& mesh, Communicator* world, ThreadPool* pool);

  // FailedPrecondition where ranks were started with other flags or folders.
  absl::Status AgreeOnTheJob();
  absl::Status Load(const LoadProgress& progress);
  // Pages that the smallest budget among ranks holds.
  absl::Status AllocateCache();
  absl::Status Execute(const StepPlan& plan, StepResult& result);
  int sampling_rank() const { return mesh_.RankOf(mesh_.pp_size - 1, 0); }

  const EngineOptions options_;
  const Mesh mesh_;
  Communicator* const world_;
  Stream stream_;
  Ledger ledger_;
  std::unique_ptr<Communicator> tp_;
  std::optional<Wire> wire_;
  absl::Duration strategies_age_;
  std::optional<Decoder> decoder_;
  std::optional<PagedKvCache> cache_;
  std::optional<StageRunner> runner_;
};

}  // namespace thinwire
