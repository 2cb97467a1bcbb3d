#include "runtime/checkpoint/rank_share.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "kernels/core/status_macros.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/checkpoint/tensor_part.h"

namespace thinwire {
namespace {

// Input or output features (or ids) of a projection, and the rank's part of them.
struct Part {
  Range range;
  int64_t total = 1;
};

Part PartOfRank(Cut cut, const ModelConfig& config, const ShardPlan& plan) {
  const auto heads = [&](Range range, int64_t total) {
    return Part{{range.begin * config.head_dim, range.end * config.head_dim},
                total * config.head_dim};
  };
  switch (cut) {
    case Cut::kWhole:
      break;
    case Cut::kOutputs:
    case Cut::kInputs:
      return {plan.ffn(), config.ffn};
    case Cut::kHeadOutputs:
    case Cut::kHeadInputs:
      return heads(plan.heads(), config.num_heads);
    case Cut::kKvOutputs:
      return heads(plan.kv_heads(), config.num_kv_heads);
    case Cut::kVocab:
      return {plan.vocab(), config.vocab};
  }
  return {{0, 1}, 1};
}

// What a rank holds of a VPTQ layer's tensor: whole vectors, whole codebooks.
Part VptqPartOfRank(Part cut, bool by_inputs, absl::string_view part,
                    const VptqLayerConfig& layer) {
  const bool indices = absl::EndsWith(part, "indices");
  if (absl::EndsWith(part, "centroids.weight")) return {{0, 1}, 1};
  if (by_inputs) return cut;
  if (!indices) return {{0, 1}, 1};
  const int64_t length = part == "outlier_indices" ? layer.outlier_length : layer.length;
  const auto up = [length](int64_t rows) { return (rows + length - 1) / length; };
  return {{cut.range.begin / length, up(cut.range.end)}, up(cut.total)};
}

// The groups that input channels `range` are in, of all there are.
absl::StatusOr<Part> GroupsOf(const Checkpoint& checkpoint, const std::string& layer,
                              int64_t in_features, Range range, const GptqConfig& gptq) {
  std::vector<int32_t> g_idx(in_features);
  if (checkpoint.Find(layer + ".g_idx") == nullptr) {
    const int64_t size = gptq.group_size > 0 ? gptq.group_size : in_features;
    for (int64_t i = 0; i < in_features; ++i) g_idx[i] = static_cast<int32_t>(i / size);
  } else {
    TW_RETURN_IF_ERROR(checkpoint.Read(layer + ".g_idx", {in_features}, {},
                                       TensorView(g_idx.data(), DType::kI32, {in_features})));
  }
  const absl::flat_hash_set<int32_t> all(g_idx.begin(), g_idx.end());
  const absl::flat_hash_set<int32_t> used(g_idx.begin() + range.begin, g_idx.begin() + range.end);
  return Part{{0, static_cast<int64_t>(used.size())}, static_cast<int64_t>(all.size())};
}

absl::StatusOr<int64_t> BytesOfRank(const Checkpoint& checkpoint, absl::string_view name,
                                    const ModelConfig& config, const ShardPlan& plan) {
  const TensorInfo& tensor = *checkpoint.Find(name);
  const Cut cut = CutOf(name);
  Part part = PartOfRank(cut, config, plan);
  const bool by_inputs = cut == Cut::kInputs || cut == Cut::kHeadInputs;
  absl::string_view gptq_part;
  const VptqLayerConfig* vptq = nullptr;
  if (IsVptqTensor(config, name, &gptq_part, &vptq)) {
    part = VptqPartOfRank(part, by_inputs, gptq_part, *vptq);
  } else if (config.gptq.has_value() && IsGptqTensor(checkpoint, name, &gptq_part)) {
    if (by_inputs && (gptq_part == "scales" || gptq_part == "qzeros")) {
      const std::string layer(absl::StripSuffix(name, absl::StrCat(".", gptq_part)));
      TW_ASSIGN_OR_RETURN(part, GroupsOf(checkpoint, layer, part.total, part.range, *config.gptq));
    } else if (!by_inputs && gptq_part == "g_idx") {
      part = {{0, 1}, 1};
    }
  } else if (by_inputs && !IsMatrix(tensor)) {
    part = {{0, 1}, 1};  // a bias that is added after the sum
  }
  return tensor.size_bytes * part.range.size() / std::max<int64_t>(1, part.total);
}

// Bytes of one tensor-parallel rank, of a model with one stage.
struct BytesByPlace {
  std::vector<int64_t> layers;
  int64_t embedding = 0;  // the token embedding, which a tied head is, too
  int64_t first = 0;      // beside it, of the first stage
  int64_t last = 0;       // of the last
};

absl::StatusOr<BytesByPlace> CountBytes(const Checkpoint& checkpoint, const ModelConfig& config,
                                        const ShardPlan& plan) {
  BytesByPlace bytes = {.layers = std::vector<int64_t>(config.num_layers)};
  for (const absl::string_view name : checkpoint.Names()) {
    TW_ASSIGN_OR_RETURN(const int64_t part, BytesOfRank(checkpoint, name, config, plan));
    const int64_t layer = LayerOf(name);
    if (layer >= 0 && layer < config.num_layers) {
      bytes.layers[layer] += part;
    } else if (absl::StrContains(name, "embed_tokens")) {
      bytes.embedding += part;
    } else if (absl::StrContains(name, "embed_positions") ||
               absl::StrContains(name, "project_in")) {
      bytes.first += part;
    } else {
      bytes.last += part;
    }
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::vector<RankShare>> SharesOfRanks(const std::string& dir,
                                                     const CheckpointSummary& summary,
                                                     const Mesh& mesh) {
  const ModelConfig& config = summary.config;
  const std::vector<int>& sizes = summary.usable_tp_sizes;
  if (std::find(sizes.begin(), sizes.end(), mesh.tp_size) == sizes.end()) {
    return absl::InvalidArgumentError(absl::StrCat(
        dir, ": --tp: expected one of ", absl::StrJoin(sizes, ", "), ", found ", mesh.tp_size));
  }
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
  std::vector<RankShare> shares(mesh.world_size());
  for (int tp_rank = 0; tp_rank < mesh.tp_size; ++tp_rank) {
    const Mesh alone = {.tp_size = mesh.tp_size, .pp_size = 1};
    TW_ASSIGN_OR_RETURN(const ShardPlan whole, ShardPlan::Create(ShapeOf(config), alone, tp_rank));
    TW_ASSIGN_OR_RETURN(const BytesByPlace bytes, CountBytes(checkpoint, config, whole));
    const KvFootprint kv = KvFootprintOf(config, summary.quantisation, whole.kv_heads());
    for (int stage = 0; stage < mesh.pp_size; ++stage) {
      const int rank = mesh.RankOf(stage, tp_rank);
      TW_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(ShapeOf(config), mesh, rank));
      RankShare& share = shares[rank];
      share.tp = mesh.tp_size;
      const Range layers = plan.layers();
      for (int64_t l = layers.begin; l < layers.end; ++l) share.weight_bytes += bytes.layers[l];
      if (plan.first_stage()) share.weight_bytes += bytes.first;
      if (plan.last_stage()) share.weight_bytes += bytes.last;
      if (plan.first_stage() || (plan.last_stage() && config.tie_embeddings)) {
        share.weight_bytes += bytes.embedding;
      }
      share.kv = kv;
      share.kv.layers = {kv.layers.begin() + layers.begin, kv.layers.begin() + layers.end};
      share.kv.first_token_bytes = kv.first_token_bytes * layers.size() / config.num_layers;
    }
  }
  return shares;
}

absl::StatusOr<RankShare> ShareOfRank(const std::string& dir, const CheckpointSummary& summary,
                                      int tp) {
  TW_ASSIGN_OR_RETURN(std::vector<RankShare> shares,
                      SharesOfRanks(dir, summary, {.tp_size = tp, .pp_size = 1}));
  RankShare largest = {.tp = tp};
  for (RankShare& share : shares) {
    largest.weight_bytes = std::max(largest.weight_bytes, share.weight_bytes);
    if (share.kv.bytes_per_token() > largest.kv.bytes_per_token()) {
      largest.kv = std::move(share.kv);
    }
  }
  return largest;
}

}  // namespace thinwire
