#include "runtime/checkpoint/checkpoint_summary.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

// The weights that the words of a layer hold: its codes, not the bits behind the last of them.
int64_t NumCodes(const TensorInfo& qweight, int bits) {
  if (qweight.shape.size() != 2) return 0;
  return qweight.shape[0] * 32 / bits * qweight.shape[1];
}

}  // namespace

double TensorGroup::bits_per_weight() const {
  return num_parameters == 0 ? 0.0 : 8.0 * static_cast<double>(size_bytes) / num_parameters;
}

absl::StatusOr<CheckpointSummary> SummarizeCheckpoint(const std::string& dir) {
  CheckpointSummary summary;
  TW_ASSIGN_OR_RETURN(summary.config, LoadModelConfig(dir));
  TW_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(dir));
  for (const absl::string_view name : checkpoint.Names()) {
    const TensorInfo& tensor = *checkpoint.Find(name);
    int64_t num_parameters = NumElements(tensor);
    std::string dtype = tensor.stored_dtype;
    absl::string_view part;
    if (summary.config.gptq.has_value() && IsGptqTensor(checkpoint, name, &part)) {
      const int bits = summary.config.gptq->bits;
      num_parameters = part == "qweight" ? NumCodes(tensor, bits) : 0;
      dtype = absl::StrCat("gptq", bits);
    }
    Add(tensor, num_parameters, summary.total);
    Add(tensor, num_parameters, summary.by_part[PartOf(name)]);
    Add(tensor, num_parameters, summary.by_dtype[dtype]);
  }
  const ModelConfig& config = summary.config;
  summary.num_files = checkpoint.num_files();
  summary.kv_elements_per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim;
  summary.usable_tp_sizes = ShardPlan::UsableTpSizes({.num_layers = config.num_layers,
                                                      .num_heads = config.num_heads,
                                                      .num_kv_heads = config.num_kv_heads,
                                                      .ffn = config.ffn,
                                                      .vocab = config.vocab});
  return summary;
}

}  // namespace thinwire
