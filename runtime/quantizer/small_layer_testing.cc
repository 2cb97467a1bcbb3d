#include "runtime/quantizer/small_layer_testing.h"

#include <cmath>
#include <random>

namespace thinwire {
namespace {

void FillLinear(std::mt19937_64& random, int64_t out_features, int64_t in_features, bool bias,
                DenseLinear& linear) {
  std::normal_distribution<float> normal;
  linear.out_features = out_features;
  linear.in_features = in_features;
  linear.weight.resize(out_features * in_features);
  const float scale = 1.0f / std::sqrt(static_cast<float>(in_features));
  for (float& weight : linear.weight) weight = scale * normal(random);
  if (!bias) return;
  linear.bias.resize(out_features);
  for (float& value : linear.bias) value = 0.3f * normal(random);
}

void FillNorm(std::mt19937_64& random, int64_t hidden, bool offset, DenseNorm& norm) {
  std::normal_distribution<float> normal;
  norm.gain.resize(hidden);
  for (int64_t c = 0; c < hidden; ++c) {
    norm.gain[c] = (c % 13 == 5 ? 20.0f : 1.0f) * std::exp(0.3f * normal(random));
  }
  if (!offset) return;
  norm.offset.resize(hidden);
  for (int64_t c = 0; c < hidden; ++c)
    norm.offset[c] = (c % 17 == 3 ? 9.0f : 0.1f) * normal(random);
}

}  // namespace

ModelConfig SmallConfig(ModelFamily family) {
  ModelConfig config;
  config.family = family;
  const bool opt = family == ModelFamily::kOpt;
  config.architecture = opt ? "OPTForCausalLM" : "LlamaForCausalLM";
  config.vocab = 100;
  config.hidden = 64;
  config.embed_dim = 64;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = opt ? 4 : 2;
  config.head_dim = 16;
  config.ffn = 96;
  config.max_positions = 256;
  config.norm_epsilon = 1e-5;
  config.activation = opt ? ActivationKind::kRelu : ActivationKind::kSilu;
  config.attention_bias = config.attention_out_bias = config.mlp_bias = opt;
  return config;
}

DenseLayer RandomLayer(const ModelConfig& config, uint64_t seed) {
  std::mt19937_64 random(seed);
  const bool opt = config.family == ModelFamily::kOpt;
  DenseLayer layer;
  FillNorm(random, config.hidden, opt, layer.attention_norm);
  FillNorm(random, config.hidden, opt, layer.mlp_norm);
  const int64_t q = config.num_heads * config.head_dim;
  const int64_t kv = config.num_kv_heads * config.head_dim;
  FillLinear(random, q, config.hidden, opt, layer.at(LinearRole::kQ));
  FillLinear(random, kv, config.hidden, opt, layer.at(LinearRole::kK));
  FillLinear(random, kv, config.hidden, opt, layer.at(LinearRole::kV));
  FillLinear(random, config.hidden, q, opt, layer.at(LinearRole::kOut));
  if (!opt) FillLinear(random, config.ffn, config.hidden, false, layer.at(LinearRole::kGate));
  FillLinear(random, config.ffn, config.hidden, opt, layer.at(LinearRole::kUp));
  FillLinear(random, config.hidden, config.ffn, opt, layer.at(LinearRole::kDown));
  return layer;
}

ResidualStream RandomStream(const ModelConfig& config, int64_t num_windows, int64_t seqlen,
                            uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  ResidualStream stream;
  stream.num_windows = num_windows;
  stream.seqlen = seqlen;
  stream.rows =
      Tensor::Allocate(DType::kF32, {num_windows * seqlen, config.hidden}, Device::Cpu()).value();
  auto* values = stream.rows.mutable_view().mutable_data<float>();
  for (int64_t i = 0; i < stream.rows.view().num_elements(); ++i) values[i] = normal(random);
  return stream;
}

}  // namespace thinwire
