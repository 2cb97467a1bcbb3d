#include "parallel/plan/shard_plan.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace thinwire {
namespace {

// The name and size of the first dimension that `tp` does not cut, or an empty string.
std::string FirstObstacle(const DecoderShape& shape, int64_t tp) {
  if (shape.num_heads % tp != 0) return absl::StrCat("num_heads ", shape.num_heads);
  if (shape.num_kv_heads % tp != 0 && tp % shape.num_kv_heads != 0) {
    return absl::StrCat("num_kv_heads ", shape.num_kv_heads);
  }
  if (shape.ffn % tp != 0) return absl::StrCat("ffn ", shape.ffn);
  return "";
}

Range Part(int64_t total, int64_t index, int64_t parts) {
  return {total * index / parts, total * (index + 1) / parts};
}

}  // namespace

std::vector<int> ShardPlan::UsableTpSizes(const DecoderShape& shape) {
  std::vector<int> sizes;
  for (int64_t tp = 1; tp <= shape.num_heads; ++tp) {
    if (FirstObstacle(shape, tp).empty()) sizes.push_back(static_cast<int>(tp));
  }
  return sizes;
}

absl::StatusOr<ShardPlan> ShardPlan::Create(const DecoderShape& shape, const Mesh& mesh, int rank,
                                            ResidualCut cut) {
  const std::string obstacle = FirstObstacle(shape, mesh.tp_size);
  if (!obstacle.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--tp ", mesh.tp_size, " does not divide ", obstacle,
        "; sizes that this model can be cut into: ", absl::StrJoin(UsableTpSizes(shape), ", ")));
  }
  if (mesh.pp_size > shape.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--pp ", mesh.pp_size, " is more stages than the model has layers; expected 1 to ",
        shape.num_layers));
  }
  ShardPlan plan;
  plan.mesh_ = mesh;
  plan.tp_rank_ = mesh.tp_rank(rank);
  plan.pp_rank_ = mesh.pp_rank(rank);
  plan.vocab_size_ = shape.vocab;
  plan.layers_ = Part(shape.num_layers, plan.pp_rank_, mesh.pp_size);
  plan.heads_ = Part(shape.num_heads, plan.tp_rank_, mesh.tp_size);
  plan.ffn_ = Part(shape.ffn, plan.tp_rank_, mesh.tp_size);
  plan.residual_cut_ = cut;
  const bool by_inputs = cut == ResidualCut::kByInputs;
  plan.out_heads_ = by_inputs ? plan.heads_ : Range{0, shape.num_heads};
  plan.down_ffn_ = by_inputs ? plan.ffn_ : Range{0, shape.ffn};
  if (shape.num_kv_heads >= mesh.tp_size) {
    plan.kv_heads_ = Part(shape.num_kv_heads, plan.tp_rank_, mesh.tp_size);
  } else {
    const int64_t head = plan.tp_rank_ * shape.num_kv_heads / mesh.tp_size;
    plan.kv_heads_ = {head, head + 1};
  }
  return plan;
}

Range ShardPlan::ResidualChannels(int64_t hidden) const {
  return residual_cut_ == ResidualCut::kByInputs ? Range{0, hidden}
                                                 : Part(hidden, tp_rank_, mesh_.tp_size);
}

Range ShardPlan::VocabOf(int tp_rank) const {
  const int64_t part = (vocab_size_ + mesh_.tp_size - 1) / mesh_.tp_size;
  return {std::min(part * tp_rank, vocab_size_), std::min(part * (tp_rank + 1), vocab_size_)};
}

}  // namespace thinwire
