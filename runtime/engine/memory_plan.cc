#include "runtime/engine/memory_plan.h"

#include <algorithm>

#include "kernels/core/status_macros.h"
#include "parallel/comm/peer_memory.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint_summary.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/checkpoint/rank_share.h"
#include "runtime/model/decoder.h"

namespace thinwire {
namespace {

// K and V of one sequence on one rank.
int64_t KvBytes(const KvFootprint& kv, const MemoryLoad& load) {
  const int64_t pages = (load.seqlen + load.page_size - 1) / load.page_size;
  // A footprint counts what is not coded at 16 bits.
  const int64_t widths = !kv.coded && load.dtype == DType::kF32 ? 2 : 1;
  return pages * load.page_size * kv.bytes_per_token() * widths + kv.first_token_bytes;
}

// Of the group's communicator; that of all ranks never asks for any.
int64_t ExchangeBytes(const Mesh& mesh) {
  return mesh.tp_size > 1 && mesh.tp_size <= kMostPeerRanks ? PeerMemory::kDeviceBytes : 0;
}

}  // namespace

int64_t RankMemory::MaxBatch(int64_t capacity) const {
  const int64_t left = capacity - (total() - kv_bytes);
  return left <= 0 || kv_bytes_per_seq <= 0 ? 0 : left / kv_bytes_per_seq;
}

absl::StatusOr<RankMemory> PlanMemory(const std::string& model, const Mesh& mesh,
                                      const MemoryLoad& load, ThreadPool& pool) {
  TW_ASSIGN_OR_RETURN(const CheckpointSummary summary, SummarizeCheckpoint(model));
  TW_ASSIGN_OR_RETURN(const std::vector<RankShare> shares, SharesOfRanks(model, summary, mesh));
  const ModelConfig& config = summary.config;
  const DecoderShape shape = ShapeOf(config);
  // Memory of the CPU takes room when it is touched, which nobody does here.
  Stream stream = Stream::Cpu(&pool);
  RankMemory largest;
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    TW_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(shape, mesh, rank));
    TW_ASSIGN_OR_RETURN(
        const Decoder decoder,
        Decoder::Create(config, plan, DecoderWeights(), load.dtype, load.max_step_tokens, stream));
    RankMemory memory = {.weight_bytes = shares[rank].weight_bytes,
                         .activation_bytes = decoder.activation_bytes(),
                         .exchange_bytes = ExchangeBytes(mesh),
                         .reserve_bytes = load.reserve_bytes,
                         .kv_bytes_per_seq = KvBytes(shares[rank].kv, load)};
    memory.kv_bytes = load.batch * memory.kv_bytes_per_seq;
    if (memory.total() > largest.total()) largest = memory;
  }
  return largest;
}

absl::StatusOr<std::vector<Mesh>> UsableMeshes(const std::string& model, int num_ranks) {
  TW_ASSIGN_OR_RETURN(const CheckpointSummary summary, SummarizeCheckpoint(model));
  std::vector<Mesh> meshes;
  for (const int tp : summary.usable_tp_sizes) {
    const Mesh mesh = {.tp_size = tp, .pp_size = num_ranks / tp};
    if (mesh.world_size() == num_ranks && mesh.pp_size <= summary.config.num_layers) {
      meshes.push_back(mesh);
    }
  }
  std::reverse(meshes.begin(), meshes.end());
  return meshes;
}

}  // namespace thinwire
