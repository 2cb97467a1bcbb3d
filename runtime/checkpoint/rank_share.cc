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
#include "kernels/vptq_linear/vptq_weights.h"
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

// What a tensor of a layer in vectors takes in memory (kernels/vptq_linear/vptq_weights.h), where
// the rank has `outputs` of it and `columns` of `all_columns`.
int64_t VptqBytes(const TensorInfo& tensor, absl::string_view part, const VptqLayerConfig& layer,
                  Range outputs, int64_t columns, int64_t all_columns) {
  const bool outliers = absl::StartsWith(part, "outlier");
  const int64_t length = outliers ? layer.outlier_length : layer.length;
  if (absl::EndsWith(part, "centroids.weight")) {
    return tensor.size_bytes / length * VptqStride(static_cast<int>(length));
  }
  if (part == "res_indices") return 0;  // beside the others'
  if (part != "indices" && part != "outlier_indices") return 4 * columns;
  const int64_t vectors = (outputs.end + length - 1) / length - outputs.begin / length;
  const int64_t groups = outliers ? 1 : layer.num_groups;
  const int64_t size =
      outliers ? layer.outlier_size : (all_columns - layer.outlier_size) / layer.num_groups;
  const int64_t held = (size * columns + all_columns - 1) / std::max<int64_t>(1, all_columns);
  return groups * VptqCodeBytes(vectors, held, outliers ? layer.outlier_bits : layer.code_bits());
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
    const Features all = FeaturesOf(name, config);
    return VptqBytes(tensor, gptq_part, *vptq, by_inputs ? Range{0, all.outputs} : part.range,
                     by_inputs ? part.range.size() : all.inputs, all.inputs);
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
  // Codes of 2 bits take 3 in memory.
  const int64_t bytes = gptq_part == "qweight" && config.gptq->bits == 2 ? tensor.size_bytes * 3 / 2
                                                                         : tensor.size_bytes;
  return bytes * part.range.size() / std::max<int64_t>(1, part.total);
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
