#include "runtime/refine/trained_decoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "parallel/plan/mesh.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/decoder_shape.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {
namespace {

// What a channel's gain may at least be moved by, as part of the largest gain.
constexpr float kSmallestShare = 1e-3f;

std::vector<float> Values(const Tensor& tensor) {
  if (tensor.empty()) return {};
  const auto* const values = tensor.view().data<float>();
  return {values, values + tensor.view().num_elements()};
}

}  // namespace

TrainedNorm::TrainedNorm(absl::string_view name, const NormWeights& weights) {
  gain.tensor = absl::StrCat(name, ".weight");
  gain.value = Values(weights.weight);
  offset.tensor = absl::StrCat(name, ".bias");
  offset.value = Values(weights.bias);
  float largest = 0.0f;
  for (const float value : gain.value) largest = std::max(largest, std::abs(value));
  for (const float value : gain.value) {
    gain.unit.push_back(std::max(std::abs(value), kSmallestShare * largest));
  }
  if (!offset.empty()) offset.unit = gain.unit;
}

void TrainedNorm::Differentiate(const DenseNorm& gradient) {
  gain.gradient = gradient.gain;
  offset.gradient = gradient.offset;
}

absl::StatusOr<TrainedDecoder> TrainedDecoder::Load(const Checkpoint& checkpoint,
                                                    const ModelConfig& config, bool byte_books) {
  TW_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(ShapeOf(config), Mesh{1, 1}, 0));
  const DecoderSpec spec = DecoderSpecFor(config);
  const LayerTensorNames& names = spec.layer;
  TrainedDecoder decoder;
  decoder.has_gate_ = !names.gate.empty();
  for (int64_t l = 0; l < config.num_layers; ++l) {
    TW_ASSIGN_OR_RETURN(LayerWeights weights, LoadDecoderLayer(checkpoint, config, plan, l));
    const std::string prefix = LayerPrefix(checkpoint, config, l);
    Layer& layer = decoder.layers_.emplace_back();
    layer.attention_norm = TrainedNorm(prefix + names.attention_norm, weights.attention_norm);
    layer.mlp_norm = TrainedNorm(prefix + names.mlp_norm, weights.mlp_norm);
    const auto take = [&](LinearRole role, const std::string& name, LinearWeights& linear) {
      const std::string module = prefix + name;
      layer.linears[static_cast<size_t>(role)] =
          TrainedLinear(module, std::move(linear), config.vptq->Find(module), byte_books);
    };
    take(LinearRole::kQ, names.q, weights.qkv[0]);
    take(LinearRole::kK, names.k, weights.qkv[1]);
    take(LinearRole::kV, names.v, weights.qkv[2]);
    take(LinearRole::kOut, names.out, weights.out[0]);
    if (decoder.has_gate_) take(LinearRole::kGate, names.gate, weights.up[0]);
    take(LinearRole::kUp, names.up, weights.up.back());
    take(LinearRole::kDown, names.down, weights.down[0]);
  }
  if (!config.final_norm) return decoder;
  TW_ASSIGN_OR_RETURN(const DecoderWeights ends, LoadDecoderEnds(checkpoint, config, plan));
  for (const std::string& prefix : spec.prefixes) {
    const std::string name = prefix + spec.final_norm;
    if (checkpoint.Find(name + ".weight") == nullptr) continue;
    decoder.final_norm_ = TrainedNorm(name, ends.final_norm);
    break;
  }
  return decoder;
}

void TrainedDecoder::Expand(int64_t layer, DenseLayer& out, ThreadPool& pool) const {
  const Layer& from = layers_[static_cast<size_t>(layer)];
  out.attention_norm = from.attention_norm.Expand();
  out.mlp_norm = from.mlp_norm.Expand();
  for (const LinearRole role : kLinearRoles) {
    if (role == LinearRole::kGate && !has_gate_) continue;
    from.linears[static_cast<size_t>(role)].Expand(out.at(role), pool);
  }
}

void TrainedDecoder::Differentiate(int64_t layer, const DenseLayer& gradient, ThreadPool& pool) {
  Layer& to = layers_[static_cast<size_t>(layer)];
  to.attention_norm.Differentiate(gradient.attention_norm);
  to.mlp_norm.Differentiate(gradient.mlp_norm);
  for (const LinearRole role : kLinearRoles) {
    if (role == LinearRole::kGate && !has_gate_) continue;
    to.linears[static_cast<size_t>(role)].Differentiate(gradient.at(role), pool);
  }
}

void TrainedDecoder::RoundBooks() {
  for (Layer& layer : layers_) {
    for (TrainedLinear& linear : layer.linears) linear.RoundBooks();
  }
}

std::vector<Parameter*> TrainedDecoder::parameters() {
  std::vector<Parameter*> found;
  const auto add = [&](TrainedNorm& norm) {
    for (Parameter* parameter : {&norm.gain, &norm.offset}) {
      if (!parameter->empty()) found.push_back(parameter);
    }
  };
  for (Layer& layer : layers_) {
    add(layer.attention_norm);
    add(layer.mlp_norm);
    for (TrainedLinear& linear : layer.linears) {
      for (Parameter* parameter : linear.parameters()) found.push_back(parameter);
    }
  }
  add(final_norm_);
  return found;
}

}  // namespace thinwire
