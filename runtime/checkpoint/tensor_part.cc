#include "runtime/checkpoint/tensor_part.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "runtime/checkpoint/gptq_tensors.h"

namespace thinwire {

bool IsMatrix(const TensorInfo& tensor) { return tensor.shape.size() == 2; }

bool IsGptqTensor(const Checkpoint& checkpoint, absl::string_view name, absl::string_view* part) {
  for (const absl::string_view known : {"qweight", "qzeros", "scales", "g_idx"}) {
    absl::string_view layer = name;
    if (!absl::ConsumeSuffix(&layer, known) || !absl::ConsumeSuffix(&layer, ".")) continue;
    *part = known;
    return HasGptqLinear(checkpoint, layer);
  }
  return false;
}

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

Cut CutOf(absl::string_view name) {
  const auto has = [&](absl::string_view word) { return absl::StrContains(name, word); };
  if (has("embed_tokens.") || has("lm_head.")) return Cut::kVocab;
  if (has(".q_proj.")) return Cut::kHeadOutputs;
  if (has(".k_proj.") || has(".v_proj.")) return Cut::kKvOutputs;
  if (has(".o_proj.") || has(".out_proj.")) return Cut::kHeadInputs;
  if (has(".fc1.") || has(".gate_proj.") || has(".up_proj.")) return Cut::kOutputs;
  return has(".fc2.") || has(".down_proj.") ? Cut::kInputs : Cut::kWhole;
}

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

int64_t LayerOf(absl::string_view name) {
  constexpr absl::string_view kLayers = "layers.";
  const size_t at = name.find(kLayers);
  if (at == absl::string_view::npos) return -1;
  name.remove_prefix(at + kLayers.size());
  int64_t layer = -1;
  return absl::SimpleAtoi(name.substr(0, name.find('.')), &layer) ? layer : -1;
}

}  // namespace thinwire
