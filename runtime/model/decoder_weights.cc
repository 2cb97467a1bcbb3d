#include "runtime/model/decoder_weights.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

// A range of a projection's output features, one after the other in a fused matrix.
struct FusedPart {
  std::string name;        // without ".weight"
  int64_t total_rows = 0;  // of the whole projection
  Range rows;
};

// Reads the tensors of one rank.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const ModelConfig& config, const ShardPlan& plan)
      : checkpoint_(checkpoint), config_(config), plan_(plan), spec_(DecoderSpecFor(config)) {}

  absl::StatusOr<DecoderWeights> Read(const LoadProgress& progress);

 private:
  // OK when the tensor exists and is fp32, fp16 or bf16; `dtype` is then its type.
  absl::Status FindFloat(const std::string& name, DType& dtype) const;

  // A block of a matrix in the checkpoint's own dtype.
  absl::Status ReadMatrix(const std::string& name, int64_t rows, int64_t columns,
                          const TensorSlice& slice, Tensor& out) const;

  // A block of a vector as fp32.
  absl::Status ReadVector(const std::string& name, int64_t size, Range range, TensorView out) const;

  absl::Status ReadNorm(const std::string& name, bool affine, NormWeights& out) const;

  // Output features of several projections with the same input stacked into one matrix, biases
  // likewise.
  absl::Status ReadFused(const std::vector<FusedPart>& parts, int64_t in_features, bool bias,
                         LinearWeights& out) const;

  // A projection cut by input features: its bias belongs to tp_rank 0, so that the sum has it once.
  absl::Status ReadRowParallel(const std::string& name, int64_t out_features, int64_t in_features,
                               Range columns, bool bias, LinearWeights& out) const;

  absl::Status ReadLayer(int64_t layer, LayerWeights& out) const;
  absl::Status ReadEnds(DecoderWeights& out) const;

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const ShardPlan& plan_;
  const DecoderSpec spec_;
  std::string prefix_;
};

absl::Status Reader::FindFloat(const std::string& name, DType& dtype) const {
  const TensorInfo* info = checkpoint_.Find(name);
  if (info == nullptr) {
    return absl::NotFoundError(absl::StrCat(checkpoint_.dir(), ": tensor '", name, "' is missing; ",
                                            config_.architecture, " needs it"));
  }
  if (!info->loadable || !IsFloat(info->dtype)) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint_.PathOf(name), ": tensor '", name,
                                                   "' has dtype ", info->stored_dtype,
                                                   "; expected F32, F16 or BF16"));
  }
  dtype = info->dtype;
  return absl::OkStatus();
}

absl::Status Reader::ReadMatrix(const std::string& name, int64_t rows, int64_t columns,
                                const TensorSlice& slice, Tensor& out) const {
  DType dtype = DType::kF32;
  TW_RETURN_IF_ERROR(FindFloat(name, dtype));
  const int64_t num_rows = slice.rows.value_or(Range{0, rows}).size();
  const int64_t num_columns = slice.columns.value_or(Range{0, columns}).size();
  TW_ASSIGN_OR_RETURN(out, Tensor::Allocate(dtype, {num_rows, num_columns}, Device::Cpu()));
  if (num_rows == 0) return absl::OkStatus();
  return checkpoint_.Read(name, {rows, columns}, slice, out.mutable_view());
}

absl::Status Reader::ReadVector(const std::string& name, int64_t size, Range range,
                                TensorView out) const {
  DType dtype = DType::kF32;
  TW_RETURN_IF_ERROR(FindFloat(name, dtype));
  return checkpoint_.Read(name, {size}, {.rows = range}, out);
}

absl::Status Reader::ReadNorm(const std::string& name, bool affine, NormWeights& out) const {
  if (!affine) return absl::OkStatus();
  const int64_t hidden = config_.hidden;
  TW_ASSIGN_OR_RETURN(out.weight, Tensor::Allocate(DType::kF32, {hidden}, Device::Cpu()));
  TW_RETURN_IF_ERROR(ReadVector(name + ".weight", hidden, {0, hidden}, out.weight.mutable_view()));
  if (!spec_.norm_has_bias) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(out.bias, Tensor::Allocate(DType::kF32, {hidden}, Device::Cpu()));
  return ReadVector(name + ".bias", hidden, {0, hidden}, out.bias.mutable_view());
}

absl::Status Reader::ReadFused(const std::vector<FusedPart>& parts, int64_t in_features, bool bias,
                               LinearWeights& out) const {
  DType dtype = DType::kF32;
  TW_RETURN_IF_ERROR(FindFloat(parts.front().name + ".weight", dtype));
  int64_t num_rows = 0;
  for (const FusedPart& part : parts) num_rows += part.rows.size();
  TW_ASSIGN_OR_RETURN(out.weight, Tensor::Allocate(dtype, {num_rows, in_features}, Device::Cpu()));
  if (bias) {
    TW_ASSIGN_OR_RETURN(out.bias, Tensor::Allocate(DType::kF32, {num_rows}, Device::Cpu()));
  }
  int64_t row = 0;
  for (const FusedPart& part : parts) {
    const std::string weight = part.name + ".weight";
    DType part_dtype = dtype;
    TW_RETURN_IF_ERROR(FindFloat(weight, part_dtype));
    TW_RETURN_IF_ERROR(checkpoint_.Read(weight, {part.total_rows, in_features}, {.rows = part.rows},
                                        out.weight.mutable_view().Rows(row, part.rows.size())));
    if (bias) {
      TW_RETURN_IF_ERROR(ReadVector(part.name + ".bias", part.total_rows, part.rows,
                                    out.bias.mutable_view().Rows(row, part.rows.size())));
    }
    row += part.rows.size();
  }
  return absl::OkStatus();
}

absl::Status Reader::ReadRowParallel(const std::string& name, int64_t out_features,
                                     int64_t in_features, Range columns, bool bias,
                                     LinearWeights& out) const {
  TW_RETURN_IF_ERROR(
      ReadMatrix(name + ".weight", out_features, in_features, {.columns = columns}, out.weight));
  if (!bias || plan_.tp_rank() != 0) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(out.bias, Tensor::Allocate(DType::kF32, {out_features}, Device::Cpu()));
  return ReadVector(name + ".bias", out_features, {0, out_features}, out.bias.mutable_view());
}

absl::Status Reader::ReadLayer(int64_t layer, LayerWeights& out) const {
  const std::string prefix = absl::StrCat(prefix_, spec_.layers, layer, ".");
  const LayerTensorNames& names = spec_.layer;
  const int64_t head_dim = config_.head_dim;
  const auto features = [head_dim](Range heads) {
    return Range{heads.begin * head_dim, heads.end * head_dim};
  };
  const int64_t q_rows = config_.num_heads * head_dim;
  const int64_t kv_rows = config_.num_kv_heads * head_dim;
  TW_RETURN_IF_ERROR(
      ReadNorm(prefix + names.attention_norm, config_.norm_affine, out.attention_norm));
  TW_RETURN_IF_ERROR(ReadFused({{prefix + names.q, q_rows, features(plan_.heads())},
                                {prefix + names.k, kv_rows, features(plan_.kv_heads())},
                                {prefix + names.v, kv_rows, features(plan_.kv_heads())}},
                               config_.hidden, config_.attention_bias, out.qkv));
  TW_RETURN_IF_ERROR(ReadRowParallel(prefix + names.out, config_.hidden, q_rows,
                                     features(plan_.heads()), config_.attention_out_bias, out.out));
  TW_RETURN_IF_ERROR(ReadNorm(prefix + names.mlp_norm, config_.norm_affine, out.mlp_norm));
  std::vector<FusedPart> up;
  if (!names.gate.empty()) up.push_back({prefix + names.gate, config_.ffn, plan_.ffn()});
  up.push_back({prefix + names.up, config_.ffn, plan_.ffn()});
  TW_RETURN_IF_ERROR(ReadFused(up, config_.hidden, config_.mlp_bias, out.up));
  return ReadRowParallel(prefix + names.down, config_.hidden, config_.ffn, plan_.ffn(),
                         config_.mlp_bias, out.down);
}

// Embeddings and head, where this rank's stage has them.
absl::Status Reader::ReadEnds(DecoderWeights& out) const {
  const int64_t embed_dim = config_.embed_dim;
  const bool tied_head = plan_.last_stage() && config_.tie_embeddings;
  if (plan_.first_stage() || tied_head) {
    TW_RETURN_IF_ERROR(ReadMatrix(prefix_ + spec_.token_embedding + ".weight", config_.vocab,
                                  embed_dim, {.rows = plan_.vocab()}, out.token_embedding));
  }
  if (plan_.first_stage() && !spec_.position_embedding.empty()) {
    TW_RETURN_IF_ERROR(ReadMatrix(prefix_ + spec_.position_embedding + ".weight",
                                  config_.max_positions + spec_.position_offset, config_.hidden, {},
                                  out.position_embedding));
  }
  if (plan_.first_stage() && !spec_.project_in.empty()) {
    TW_RETURN_IF_ERROR(ReadMatrix(prefix_ + spec_.project_in + ".weight", config_.hidden, embed_dim,
                                  {}, out.project_in.weight));
  }
  if (!plan_.last_stage()) return absl::OkStatus();
  if (config_.final_norm) {
    TW_RETURN_IF_ERROR(ReadNorm(prefix_ + spec_.final_norm, config_.norm_affine, out.final_norm));
  }
  if (!spec_.project_out.empty()) {
    TW_RETURN_IF_ERROR(ReadMatrix(prefix_ + spec_.project_out + ".weight", embed_dim,
                                  config_.hidden, {}, out.project_out.weight));
  }
  if (!config_.tie_embeddings) {
    TW_RETURN_IF_ERROR(ReadMatrix(spec_.head + ".weight", config_.vocab, embed_dim,
                                  {.rows = plan_.vocab()}, out.head));
  }
  return absl::OkStatus();
}

absl::StatusOr<DecoderWeights> Reader::Read(const LoadProgress& progress) {
  prefix_ = spec_.prefixes.front();
  for (const std::string& prefix : spec_.prefixes) {
    if (checkpoint_.Find(prefix + spec_.token_embedding + ".weight") != nullptr) {
      prefix_ = prefix;
      break;
    }
  }
  DecoderWeights weights;
  TW_RETURN_IF_ERROR(ReadEnds(weights));
  const Range layers = plan_.layers();
  weights.layers.resize(layers.size());
  for (int64_t layer = layers.begin; layer < layers.end; ++layer) {
    TW_RETURN_IF_ERROR(ReadLayer(layer, weights.layers[layer - layers.begin]));
    if (progress != nullptr) progress(layer - layers.begin + 1, layers.size());
  }
  return weights;
}

int64_t Bytes(const LinearWeights& linear) {
  return linear.weight.size_bytes() + linear.bias.size_bytes();
}

int64_t Bytes(const NormWeights& norm) { return norm.weight.size_bytes() + norm.bias.size_bytes(); }

}  // namespace

int64_t DecoderWeights::size_bytes() const {
  int64_t bytes = token_embedding.size_bytes() + position_embedding.size_bytes() +
                  Bytes(project_in) + Bytes(final_norm) + Bytes(project_out) + head.size_bytes();
  for (const LayerWeights& layer : layers) {
    bytes += Bytes(layer.attention_norm) + Bytes(layer.qkv) + Bytes(layer.out) +
             Bytes(layer.mlp_norm) + Bytes(layer.up) + Bytes(layer.down);
  }
  return bytes;
}

absl::StatusOr<DecoderWeights> LoadDecoderWeights(const Checkpoint& checkpoint,
                                                  const ModelConfig& config, const ShardPlan& plan,
                                                  const LoadProgress& progress) {
  return Reader(checkpoint, config, plan).Read(progress);
}

}  // namespace thinwire
