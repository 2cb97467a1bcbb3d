#include "runtime/model/decoder_weights.h"

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/quantisation.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/model/coded_layer.h"
#include "runtime/model/device_weights.h"
#include "runtime/model/vptq_layer.h"
#include "runtime/model/weight_reader.h"

namespace thinwire {
namespace {

// What the names begin with in this checkpoint.
std::string NamePrefix(const Checkpoint& checkpoint, const DecoderSpec& spec) {
  for (const std::string& prefix : spec.prefixes) {
    if (checkpoint.Find(prefix + spec.token_embedding + ".weight") != nullptr) return prefix;
  }
  return spec.prefixes.front();
}

// Reads the tensors of one rank.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, const ModelConfig& config, const ShardPlan& plan)
      : reader_(checkpoint, config),
        config_(config),
        plan_(plan),
        spec_(DecoderSpecFor(config)),
        prefix_(NamePrefix(checkpoint, spec_)) {}

  absl::StatusOr<DecoderWeights> Read(const LoadProgress& progress, Stream* stream,
                                      int64_t usual_tokens);
  absl::StatusOr<LayerWeights> ReadOneLayer(int64_t layer);
  absl::StatusOr<DecoderWeights> ReadEndsOnly();

 private:
  absl::Status ReadLayer(int64_t layer, ThreadPool* pool, LayerWeights& out) const;
  absl::Status ReadDenseLayer(const std::string& prefix, LayerWeights& out) const;
  absl::Status ReadEnds(DecoderWeights& out) const;
  absl::Status ReadCodes(DecoderWeights& out);

  const WeightReader reader_;
  const ModelConfig& config_;
  const ShardPlan& plan_;
  const DecoderSpec spec_;
  const std::string prefix_;
  RptqFile rptq_;  // no layers where the checkpoint has none
};

absl::Status Reader::ReadLayer(int64_t layer, ThreadPool* pool, LayerWeights& out) const {
  const LayerSource source = {.reader = &reader_,
                              .config = &config_,
                              .spec = &spec_,
                              .plan = &plan_,
                              .prefix = absl::StrCat(prefix_, spec_.layers, layer, "."),
                              .codes = rptq_.layers.empty() ? nullptr : &rptq_.layers[layer],
                              .pool = pool};
  if (config_.gptq.has_value()) return ReadCodedLayer(source, out);
  if (config_.vptq.has_value()) return ReadVptqLayer(source, out);
  TW_RETURN_IF_ERROR(ReadDenseLayer(source.prefix, out));
  return ReadSitesOfDenseLayer(source, out);
}

// Reads what thinwire.json and rptq.safetensors say, where they are.
absl::Status Reader::ReadCodes(DecoderWeights& out) {
  const std::string& dir = reader_.checkpoint().dir();
  TW_ASSIGN_OR_RETURN(Quantisation quantisation, ReadQuantisation(dir, config_));
  if (!quantisation.made.has_value()) return absl::OkStatus();
  TW_RETURN_IF_ERROR(CheckTpAllowed(*quantisation.made, plan_.mesh().tp_size, dir));
  out.exact_first_tokens = quantisation.made->first_token_exact;
  rptq_ = *std::move(quantisation.rptq);
  return absl::OkStatus();
}

absl::Status Reader::ReadDenseLayer(const std::string& prefix, LayerWeights& out) const {
  const LayerTensorNames& names = spec_.layer;
  const int64_t head_dim = config_.head_dim;
  const auto features = [head_dim](Range heads) {
    return Range{heads.begin * head_dim, heads.end * head_dim};
  };
  const int64_t q_rows = config_.num_heads * head_dim;
  const int64_t kv_rows = config_.num_kv_heads * head_dim;
  const Range residual = plan_.ResidualChannels(config_.hidden);
  const bool residual_bias = plan_.adds_residual_bias();
  TW_RETURN_IF_ERROR(reader_.ReadNorm(prefix + names.attention_norm, config_.norm_affine,
                                      spec_.norm_has_bias, out.attention_norm));
  TW_RETURN_IF_ERROR(reader_.ReadFused({{prefix + names.q, q_rows, features(plan_.heads())},
                                        {prefix + names.k, kv_rows, features(plan_.kv_heads())},
                                        {prefix + names.v, kv_rows, features(plan_.kv_heads())}},
                                       config_.hidden, config_.attention_bias,
                                       out.qkv.emplace_back()));
  TW_RETURN_IF_ERROR(reader_.ReadBlock(
      {prefix + names.out, config_.hidden, residual}, q_rows, features(plan_.out_heads()),
      residual_bias && config_.attention_out_bias, out.out.emplace_back()));
  TW_RETURN_IF_ERROR(reader_.ReadNorm(prefix + names.mlp_norm, config_.norm_affine,
                                      spec_.norm_has_bias, out.mlp_norm));
  std::vector<ProjectionRows> up;
  if (!names.gate.empty()) up.push_back({prefix + names.gate, config_.ffn, plan_.ffn()});
  up.push_back({prefix + names.up, config_.ffn, plan_.ffn()});
  TW_RETURN_IF_ERROR(
      reader_.ReadFused(up, config_.hidden, config_.mlp_bias, out.up.emplace_back()));
  return reader_.ReadBlock({prefix + names.down, config_.hidden, residual}, config_.ffn,
                           plan_.down_ffn(), residual_bias && config_.mlp_bias,
                           out.down.emplace_back());
}

// Embeddings and head, where this rank's stage has them.
absl::Status Reader::ReadEnds(DecoderWeights& out) const {
  const int64_t embed_dim = config_.embed_dim;
  const bool tied_head = plan_.last_stage() && config_.tie_embeddings;
  if (plan_.first_stage() || tied_head) {
    TW_RETURN_IF_ERROR(reader_.ReadMatrix(prefix_ + spec_.token_embedding + ".weight",
                                          config_.vocab, embed_dim, {.rows = plan_.vocab()},
                                          out.token_embedding));
  }
  if (plan_.first_stage() && !spec_.position_embedding.empty()) {
    TW_RETURN_IF_ERROR(reader_.ReadMatrix(prefix_ + spec_.position_embedding + ".weight",
                                          config_.max_positions + spec_.position_offset,
                                          config_.hidden, {}, out.position_embedding));
  }
  if (plan_.first_stage() && !spec_.project_in.empty()) {
    TW_RETURN_IF_ERROR(reader_.ReadMatrix(prefix_ + spec_.project_in + ".weight", config_.hidden,
                                          embed_dim, {}, out.project_in.weight));
  }
  if (!plan_.last_stage()) return absl::OkStatus();
  if (config_.final_norm) {
    TW_RETURN_IF_ERROR(reader_.ReadNorm(prefix_ + spec_.final_norm, config_.norm_affine,
                                        spec_.norm_has_bias, out.final_norm));
  }
  if (!spec_.project_out.empty()) {
    TW_RETURN_IF_ERROR(reader_.ReadMatrix(prefix_ + spec_.project_out + ".weight", embed_dim,
                                          config_.hidden, {}, out.project_out.weight));
  }
  if (!config_.tie_embeddings) {
    TW_RETURN_IF_ERROR(reader_.ReadMatrix(spec_.head + ".weight", config_.vocab, embed_dim,
                                          {.rows = plan_.vocab()}, out.head));
  }
  return absl::OkStatus();
}

absl::StatusOr<DecoderWeights> Reader::Read(const LoadProgress& progress, Stream* stream,
                                            int64_t usual_tokens) {
  DecoderWeights weights;
  TW_RETURN_IF_ERROR(ReadCodes(weights));
  TW_RETURN_IF_ERROR(ReadEnds(weights));
  if (stream != nullptr) TW_RETURN_IF_ERROR(MoveEndsToDevice(weights, *stream));
  const Range layers = plan_.layers();
  weights.layers.resize(layers.size());
  for (int64_t layer = layers.begin; layer < layers.end; ++layer) {
    LayerWeights& read = weights.layers[layer - layers.begin];
    TW_RETURN_IF_ERROR(ReadLayer(layer, stream == nullptr ? nullptr : &stream->pool(), read));
    if (stream != nullptr) TW_RETURN_IF_ERROR(MoveToDevice(read, *stream, usual_tokens));
    if (progress != nullptr) progress(layer - layers.begin + 1, layers.size());
  }
  return weights;
}

absl::StatusOr<LayerWeights> Reader::ReadOneLayer(int64_t layer) {
  DecoderWeights quantisation;
  TW_RETURN_IF_ERROR(ReadCodes(quantisation));
  LayerWeights weights;
  TW_RETURN_IF_ERROR(ReadLayer(layer, nullptr, weights));
  return weights;
}

absl::StatusOr<DecoderWeights> Reader::ReadEndsOnly() {
  DecoderWeights weights;
  TW_RETURN_IF_ERROR(ReadEnds(weights));
  return weights;
}

int64_t Bytes(const std::vector<LinearWeights>& linears) {
  int64_t bytes = 0;
  for (const LinearWeights& linear : linears) bytes += linear.size_bytes();
  return bytes;
}

}  // namespace

int64_t LinearWeights::out_features() const {
  if (vptq.has_value()) return vptq->out_features();
  return codes.has_value() ? codes->out_features() : weight.view().dim(0);
}

int64_t LinearWeights::size_bytes() const {
  return weight.size_bytes() + (codes.has_value() ? codes->size_bytes() : 0) +
         (vptq.has_value() ? vptq->size_bytes() : 0) + bias.size_bytes() + offset.size_bytes() +
         input_order.size_bytes();
}

int64_t NormWeights::size_bytes() const { return weight.size_bytes() + bias.size_bytes(); }

int64_t SiteCoding::size_bytes() const {
  return order.size_bytes() + step.size_bytes() + inverse_step.size_bytes() + zero.size_bytes() +
         max_code.size_bytes() + snap.size_bytes();
}

int64_t LayerWeights::size_bytes() const {
  int64_t bytes = attention_norm.size_bytes() + mlp_norm.size_bytes();
  for (const auto* linears : {&qkv, &out, &up, &down}) bytes += Bytes(*linears);
  for (const SiteCoding* coding : {&qkv_in, &q, &out_in, &mlp_in, &down_in}) {
    bytes += coding->size_bytes();
  }
  return bytes;
}

int64_t DecoderWeights::size_bytes() const {
  int64_t bytes = token_embedding.size_bytes() + position_embedding.size_bytes() +
                  project_in.size_bytes() + final_norm.size_bytes() + project_out.size_bytes() +
                  head.size_bytes();
  for (const LayerWeights& layer : layers) bytes += layer.size_bytes();
  return bytes;
}

absl::StatusOr<DecoderWeights> LoadDecoderWeights(const Checkpoint& checkpoint,
                                                  const ModelConfig& config, const ShardPlan& plan,
                                                  const LoadProgress& progress, Stream* stream,
                                                  int64_t usual_tokens) {
  return Reader(checkpoint, config, plan).Read(progress, stream, usual_tokens);
}

absl::StatusOr<LayerWeights> LoadDecoderLayer(const Checkpoint& checkpoint,
                                              const ModelConfig& config, const ShardPlan& plan,
                                              int64_t layer) {
  return Reader(checkpoint, config, plan).ReadOneLayer(layer);
}

absl::StatusOr<DecoderWeights> LoadDecoderEnds(const Checkpoint& checkpoint,
                                               const ModelConfig& config, const ShardPlan& plan) {
  return Reader(checkpoint, config, plan).ReadEndsOnly();
}

std::string LayerPrefix(const Checkpoint& checkpoint, const ModelConfig& config, int64_t layer) {
  const DecoderSpec spec = DecoderSpecFor(config);
  return absl::StrCat(NamePrefix(checkpoint, spec), spec.layers, layer, ".");
}

}  // namespace thinwire
