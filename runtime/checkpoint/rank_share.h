// What one rank holds of a model that is cut over several.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/plan/mesh.h"
#include "runtime/checkpoint/checkpoint_summary.h"
#include "runtime/checkpoint/quantisation.h"

namespace thinwire {

struct RankShare {
  int tp = 1;
  int64_t weight_bytes = 0;  // as stored, but for VPTQ and 2-bit codes, which take more in memory
  KvFootprint kv;            // of the layers and heads that it has
};

// Of each rank. InvalidArgument names --tp and the sizes that will do, or --pp.
absl::StatusOr<std::vector<RankShare>> SharesOfRanks(const std::string& dir,
                                                     const CheckpointSummary& summary,
                                                     const Mesh& mesh);

// With one stage: the weights of the rank that has most, and the KV of the one whose cache is
// largest. The same errors.
absl::StatusOr<RankShare> ShareOfRank(const std::string& dir, const CheckpointSummary& summary,
                                      int tp);

}  // namespace thinwire
