// The flags of every subcommand that runs a model, and the session they open.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "launcher/job.h"
#include "parallel/plan/mesh.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/engine_rank.h"
#include "runtime/engine/rank_layout.h"

namespace CLI {
class App;
}

namespace thinwire {

struct EngineFlags {
  std::string model;
  int tp = 1;
  int pp = 1;
  int prefill_ranks = 0;  // 0: all ranks do everything
  int decode_ranks = 0;
  std::string dtype = "fp32";
  std::string wire = "native";
  std::string hop = "auto";
  std::string norm_codes = "auto";
  std::string wire_table = "cached";
  std::string device = "auto";
  bool share_gpus = false;
  bool no_cuda_graphs = false;
  std::string steps_ahead = "auto";
  int threads = 0;
  std::string kv_memory;
  std::string prefix_cache = "off";
  int64_t page_size = 16;
  int64_t max_seqs = 64;
  int64_t max_step_tokens = 512;
  int64_t step_timeout_s = 600;

  void AddTo(CLI::App& app);
  // --prefill-ranks and --decode-ranks, for commands that both prefill and decode.
  void AddGroupsTo(CLI::App& app);

  // How these flags deal out the ranks of a job. InvalidArgument names flags that contradict each
  // other or the number of ranks.
  absl::StatusOr<RankLayout> Layout(int num_ranks) const;
};

// A loaded engine on all ranks. The leader has an Engine; the others only follow.
class EngineSession {
 public:
  // Collective. Flags that cannot work are usage errors, alike on all ranks.
  static absl::StatusOr<std::unique_ptr<EngineSession>> Open(const EngineFlags& flags, Job& job);

  // Ranks other than 0: works until the leader stops.
  absl::Status Follow() { return rank_->Follow(); }

  // Rank 0.
  Engine& engine() { return *engine_; }
  ThreadPool& pool() { return *pool_; }
  const EngineRank& rank() const { return *rank_; }

 private:
  EngineSession() = default;

  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<EngineRank> rank_;
  std::unique_ptr<Engine> engine_;
};

// "512", "64M", "2G": bytes; suffixes K, M, G, T are powers of 1024. InvalidArgument otherwise.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);

}  // namespace thinwire
