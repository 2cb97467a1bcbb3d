#include "runtime/checkpoint/checkpoint_summary.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "kernels/core/status_macros.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/gptq_tensors.h"

namespace thinwire {
namespace {

// By the words that OPT and LLaMA checkpoints name their tensors with.
std::string PartOf(absl::string_view name) {
  if (absl::StrContains(name, "norm")) return "norm";
  if (absl::StrContains(name, "embed") || absl::StrContains(name, "project_")) return "embedding";
  if (absl::StrContains(name, "self_attn")) return "attention";
  if (absl::StrContains(name, "mlp") || absl::StrContains(name, ".fc1.") ||
      absl::StrContains(name, ".fc2.")) {
    return "mlp";
  }
  return absl::StrContains(name, "lm_head") ? "head" : "other";
}

DecoderShape ShapeOf(const ModelConfig& config) {
  return {.num_layers = config.num_layers,
          .num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .ffn = config.ffn,
          .vocab = config.vocab};
}

void Add(const TensorInfo& tensor, int64_t num_parameters, TensorGroup& group) {
  ++group.num_tensors;
  group.num_parameters += num_parameters;
  group.size_bytes += tensor.size_bytes;
}

int64_t NumElements(const TensorInfo& tensor) {
  int64_t count = 1;
  for (const int64_t dim : tensor.shape) count *= dim;
  return count;
}

// Whether `name` is a tensor of a GPTQ layer other than its bias; `part` is which.
bool IsGptqTensor(const Checkpoint& checkpoint, absl::string_view name, absl::string_view* part) {
  for (const absl::string_view known : {"qweight", "qzeros", "scales", "g_idx"}) {
    absl::string_view layer = name;
    if (!absl::ConsumeSuffix(&layer, known) || !absl::ConsumeSuffix(&layer, ".")) continue;
    *part = known;
    return HasGptqLinear(checkpoint, layer);
  }
  return false;
}

// Whether `name` is a tensor of a VPTQ layer other than its bias; `part` is which.
bool IsVptqTensor(const ModelConfig& config, absl::string_view name, absl::string_view* part,
                  const VptqLayerConfig** layer) {
  if (!config.vptq.has_value()) return false;
  for (const absl::string_view known :
       {"res_centroids.weight", "outlier_centroids.weight", "centroids.weight", "res_indices",
        "outlier_indices", "indices", "weight_scale", "weight_bias", "perm"}) {
    absl::string_view module = name;
    if (!absl::ConsumeSuffix(&module, known) || !absl::ConsumeSuffix(&module, ".")) continue;
    *part = known;
    *layer = config.vptq->Find(module);
    return *layer != nullptr;
  }
  return false;
}

// The weights that the words of a layer hold: its codes, not the bits behind the last of them.
int64_t NumCodes(const TensorInfo& qweight, int bits) {
  if (qweight.shape.size() != 2) return 0;
  return qweight.shape[0] * 32 / bits * qweight.shape[1];
}

bool IsMatrix(const TensorInfo& tensor) { return tensor.shape.size() == 2; }

void AddToLinear(const TensorInfo& tensor, int64_t num_parameters, absl::string_view part,
                 LinearGroup& linear) {
  Add(tensor, num_parameters, linear.total);
  const bool book = absl::EndsWith(part, "centroids.weight");
  (part == "scales" || part == "weight_scale"  ? linear.scales_bytes
   : part == "qzeros" || part == "weight_bias" ? linear.zeros_bytes
   : part == "g_idx" || part == "perm"         ? linear.g_idx_bytes
   : book                                      ? linear.codebook_bytes
                                               : linear.codes_bytes) += tensor.size_bytes;
}

// How tensor parallelism cuts a tensor, by its name.
enum class Cut { kWhole, kOutputs, kHeadOutputs, kKvOutputs, kInputs, kHeadInputs, kVocab };

Cut CutOf(absl::string_view name) {
  const auto has = [&](absl::string_view word) { return absl::StrContains(name, word); };
  if (has("embed_tokens.") || has("lm_head.")) return Cut::kVocab;
  if (has(".q_proj.")) return Cut::kHeadOutputs;
  if (has(".k_proj.") || has(".v_proj.")) return Cut::kKvOutputs;
  if (has(".o_proj.") || has(".out_proj.")) return Cut::kHeadInputs;
  if (has(".fc1.") || has(".gate_proj.") || has(".up_proj.")) return Cut::kOutputs;
  return has(".fc2.") || has(".down_proj.") ? Cut::kInputs : Cut::kWhole;
}

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

// Output and input features of the projection that a tensor belongs to.
struct Features {
  int64_t outputs = 0;
  int64_t inputs = 0;
};

Features FeaturesOf(absl::string_view name, const ModelConfig& config) {
  switch (CutOf(name)) {
    case Cut::kOutputs:
      return {config.ffn, config.hidden};
    case Cut::kInputs:
      return {config.hidden, config.ffn};
    case Cut::kHeadOutputs:
      return {config.num_heads * config.head_dim, config.hidden};
    case Cut::kHeadInputs:
      return {config.hidden, config.num_heads * config.head_dim};
    case Cut::kKvOutputs:
      return {config.num_kv_heads * config.head_dim, config.hidden};
    default:
      return {};
  }
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

}  // namespace

double LinearGroup::bits_per_weight(int64_t bytes) const {
  return total.num_parameters == 0
             ? 0.0
             : 8.0 * static_cast<double>(bytes) / static_cast<double>(total.num_parameters);
}

double TensorGroup::bits_per_weight() const {
  return num_parameters == 0 ? 0.0 : 8.0 * static_cast<double>(size_bytes) / num_parameters;
}

absl::StatusOr<CheckpointSummary> SummarizeCheckpoint(const std::string& dir) {
  CheckpointSummary summary;
  TW_ASSIGN_OR_RETURN(summary.config, LoadModelConfig(dir));
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
  TW_ASSIGN_OR_RETURN(summary.quantisation, ReadQuantisation(dir, summary.config));
  summary.scheme = SchemeOf(summary.config, summary.quantisation);
  for (const absl::string_view name : checkpoint.Names()) {
    const TensorInfo& tensor = *checkpoint.Find(name);
    int64_t num_parameters = NumElements(tensor);
    std::string dtype = tensor.stored_dtype;
    const std::string place = PartOf(name);
    absl::string_view part;
    const VptqLayerConfig* vptq = nullptr;
    if (IsVptqTensor(summary.config, name, &part, &vptq)) {
      const Features features = FeaturesOf(name, summary.config);
      num_parameters = part == "indices" ? features.outputs * features.inputs : 0;
      dtype = vptq->Name();
      AddToLinear(tensor, num_parameters, part, summary.linear);
    } else if (summary.config.gptq.has_value() && IsGptqTensor(checkpoint, name, &part)) {
      const int bits = summary.config.gptq->bits;
      num_parameters = part == "qweight" ? NumCodes(tensor, bits) : 0;
      dtype = absl::StrCat("gptq", bits);
      AddToLinear(tensor, num_parameters, part, summary.linear);
    } else if ((place == "attention" || place == "mlp") && IsMatrix(tensor)) {
      AddToLinear(tensor, num_parameters, "weight", summary.linear);
    }
    Add(tensor, num_parameters, summary.total);
    Add(tensor, num_parameters, summary.by_part[place]);
    Add(tensor, num_parameters, summary.by_dtype[dtype]);
  }
  const ModelConfig& config = summary.config;
  summary.num_files = checkpoint.num_files();
  summary.kv_elements_per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim;
  for (const int tp : ShardPlan::UsableTpSizes(ShapeOf(config))) {
    const bool allowed = !summary.quantisation.made.has_value() ||
                         CheckTpAllowed(*summary.quantisation.made, tp, dir).ok();
    if (allowed) summary.usable_tp_sizes.push_back(tp);
  }
  return summary;
}

absl::StatusOr<RankShare> ShareOfRank(const std::string& dir, const CheckpointSummary& summary,
                                      int tp) {
  const ModelConfig& config = summary.config;
  const std::vector<int>& sizes = summary.usable_tp_sizes;
  if (std::find(sizes.begin(), sizes.end(), tp) == sizes.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat(dir, ": --tp: expected one of ", absl::StrJoin(sizes, ", "), ", found ", tp));
  }
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
  RankShare share = {.tp = tp};
  for (int rank = 0; rank < tp; ++rank) {
    TW_ASSIGN_OR_RETURN(const ShardPlan plan,
                        ShardPlan::Create(ShapeOf(config), {.tp_size = tp, .pp_size = 1}, rank));
    int64_t bytes = 0;
    for (const absl::string_view name : checkpoint.Names()) {
      TW_ASSIGN_OR_RETURN(const int64_t part, BytesOfRank(checkpoint, name, config, plan));
      bytes += part;
    }
    share.weight_bytes = std::max(share.weight_bytes, bytes);
    KvFootprint kv = KvFootprintOf(config, summary.quantisation, plan.kv_heads());
    if (kv.bytes_per_token() > share.kv.bytes_per_token()) share.kv = std::move(kv);
  }
  return share;
}

}  // namespace thinwire
