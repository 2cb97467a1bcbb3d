#include "runtime/checkpoint/checkpoint_summary.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/core/status_macros.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/checkpoint/tensor_part.h"

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

// The weights that the words of a layer hold: its codes, not the bits behind the last of them.
int64_t NumCodes(const TensorInfo& qweight, int bits) {
  if (qweight.shape.size() != 2) return 0;
  return qweight.shape[0] * 32 / bits * qweight.shape[1];
}

bool IsBook(absl::string_view part) { return absl::EndsWith(part, "centroids.weight"); }

// The tensor, a byte book for each of its rows, as bytes and a scale for each place of a vector.
TensorInfo AsBytes(TensorInfo book, int length) {
  book.size_bytes = NumElements(book) + 2 * book.shape.front() * length;
  return book;
}

void AddToLinear(const TensorInfo& tensor, int64_t num_parameters, absl::string_view part,
                 LinearGroup& linear) {
  Add(tensor, num_parameters, linear.total);
  const bool book = IsBook(part);
  (part == "scales" || part == "weight_scale"  ? linear.scales_bytes
   : part == "qzeros" || part == "weight_bias" ? linear.zeros_bytes
   : part == "g_idx" || part == "perm"         ? linear.g_idx_bytes
   : book                                      ? linear.codebook_bytes
                                               : linear.codes_bytes) += tensor.size_bytes;
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
  const bool byte_books =
      summary.quantisation.made.has_value() && summary.quantisation.made->scheme.vptq.byte_books;
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
      const int length = absl::StartsWith(part, "outlier") ? vptq->outlier_length : vptq->length;
      AddToLinear(byte_books && IsBook(part) ? AsBytes(tensor, length) : tensor, num_parameters,
                  part, summary.linear);
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

}  // namespace thinwire
