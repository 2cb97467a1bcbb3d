#include "tests/support/local_mesh.h"

#include <memory>
#include <thread>
#include <vector>

#include "kernels/core/status_macros.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/local_communicator.h"
#include "runtime/engine/engine_rank.h"

namespace thinwire {
namespace {

absl::Status FollowOn(const EngineOptions& options, const RankLayout& layout, Communicator* world) {
  ThreadPool pool(1);
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<EngineRank> rank,
                      EngineRank::Create(options, layout, world, &pool));
  return rank->Follow();
}

absl::Status LeadOn(const EngineOptions& options, const RankLayout& layout, Communicator* world,
                    absl::FunctionRef<absl::Status(Engine& engine)> lead) {
  ThreadPool pool(1);
  TW_ASSIGN_OR_RETURN(const std::unique_ptr<EngineRank> rank,
                      EngineRank::Create(options, layout, world, &pool));
  Engine engine(rank.get());
  const absl::Status led = lead(engine);
  const absl::Status stopped = engine.Stop();
  return led.ok() ? stopped : led;
}

}  // namespace

absl::Status RunOnLocalRanks(const EngineOptions& options, const RankLayout& layout,
                             absl::FunctionRef<absl::Status(Engine& engine)> lead) {
  std::vector<std::unique_ptr<Communicator>> worlds = CreateLocalCommunicators(layout.world_size());
  std::vector<absl::Status> statuses(worlds.size());
  std::vector<std::thread> followers;
  for (size_t rank = 1; rank < worlds.size(); ++rank) {
    followers.emplace_back(
        [&, rank] { statuses[rank] = FollowOn(options, layout, worlds[rank].get()); });
  }
  statuses[0] = LeadOn(options, layout, worlds[0].get(), lead);
  for (std::thread& follower : followers) follower.join();
  for (const absl::Status& status : statuses) TW_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status RunOnLocalMesh(const EngineOptions& options, const Mesh& mesh,
                            absl::FunctionRef<absl::Status(Engine& engine)> lead) {
  return RunOnLocalRanks(options, RankLayout::OneMesh(mesh), lead);
}

}  // namespace thinwire
