#include "runtime/checkpoint/checkpoint_summary.h"

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "kernels/core/status_macros.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"

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

void Add(const TensorInfo& tensor, TensorGroup& group) {
  int64_t count = 1;
  for (const int64_t dim : tensor.shape) count *= dim;
  ++group.num_tensors;
  group.num_parameters += count;
  group.size_bytes += tensor.size_bytes;
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
    Add(tensor, summary.total);
    Add(tensor, summary.by_part[PartOf(name)]);
    Add(tensor, summary.by_dtype[tensor.stored_dtype]);
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
