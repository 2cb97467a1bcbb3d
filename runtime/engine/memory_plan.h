// What a job would need of each rank's memory, without loading anything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/dtype.h"
#include "kernels/core/thread_pool.h"
#include "parallel/plan/mesh.h"

namespace thinwire {

struct MemoryLoad {
  int64_t batch = 1;   // sequences
  int64_t seqlen = 0;  // tokens of each, prompt and generated
  int64_t page_size = 16;
  int64_t max_step_tokens = 512;
  DType dtype = DType::kF16;
  // What the driver, its libraries and their scratch take beside; of a rank.
  int64_t reserve_bytes = 0;
};

// Of the rank that needs most.
struct RankMemory {
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;  // of all sequences
  int64_t activation_bytes = 0;
  int64_t exchange_bytes = 0;  // what the others of the group write, where GPUs can
  int64_t reserve_bytes = 0;
  int64_t kv_bytes_per_seq = 0;

  int64_t total() const {
    return weight_bytes + kv_bytes + activation_bytes + exchange_bytes + reserve_bytes;
  }
  // Sequences of this length that `capacity` bytes hold; 0 where not even the weights fit.
  int64_t MaxBatch(int64_t capacity) const;
};

// `model`: as --model says. Weights count as stored, which is within some percent of what a rank
// allocates; activations are what the engine allocates. Errors: those of SummarizeCheckpoint and
// SharesOfRanks.
absl::StatusOr<RankMemory> PlanMemory(const std::string& model, const Mesh& mesh,
                                      const MemoryLoad& load, ThreadPool& pool);

// The meshes of `num_ranks` ranks that the model can be cut into, most tensor-parallel first.
absl::StatusOr<std::vector<Mesh>> UsableMeshes(const std::string& model, int num_ranks);

}  // namespace thinwire
