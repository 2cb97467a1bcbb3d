// What a model folder says about its model: config.json and generation_config.json, read into one
// struct for all families.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/activation/activation.h"
#include "kernels/core/dtype.h"
#include "nlohmann/json_fwd.hpp"
#include "runtime/checkpoint/gptq_config.h"
#include "runtime/checkpoint/vptq_config.h"

namespace thinwire {

enum class ModelFamily { kOpt, kLlama, kMistral };

enum class RopeScalingKind {
  kNone,
  kLinear,  // positions divided by `factor`
  kLlama3,  // low frequencies divided by `factor`, a smooth step between the two bounds
};

struct RopeConfig {
  double theta = 10000.0;
  RopeScalingKind scaling = RopeScalingKind::kNone;
  double factor = 1.0;
  // kLlama3 only: wavelengths above original_max_positions / low_freq_factor are scaled, those
  // below original_max_positions / high_freq_factor are kept.
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_positions = 0;
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kOpt;
  std::string architecture;  // "OPTForCausalLM"

  int64_t vocab = 0;
  int64_t hidden = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  int64_t head_dim = 0;      // num_heads * head_dim may differ from hidden (not for OPT)
  int64_t ffn = 0;
  int64_t max_positions = 0;
  double norm_epsilon = 0.0;
  ActivationKind activation = ActivationKind::kRelu;
  bool tie_embeddings = false;      // the output projection is the token embedding
  bool attention_bias = false;      // of the query, key and value projections
  bool attention_out_bias = false;  // of the attention's output projection
  bool mlp_bias = false;

  // OPT.
  bool norm_before = true;  // pre-norm; false: after the residual sum
  int64_t embed_dim = 0;  // width of the embeddings; != hidden if projected in and out; else hidden
  bool final_norm = true;   // a norm after the last layer
  bool norm_affine = true;  // norms have weight and bias

  // LLaMA, Mistral.
  RopeConfig rope;
  int64_t sliding_window = 0;  // a token sees this many, itself included; 0: all

  // Generation.
  std::vector<int32_t> eos_token_ids;  // each in [0, vocab), no duplicates; may be empty
  int32_t bos_token_id = -1;           // -1: none

  // What the weights are said to be stored in: a hint, the tensors themselves decide.
  DType weights_dtype = DType::kF16;

  // How the linear layers that are stored as codes are packed; neither this nor vptq: all
  // weights are dense.
  std::optional<GptqConfig> gptq;
  // Which of them are indices into codebooks; at most one of the two is there.
  std::optional<VptqConfig> vptq;
};

// Reads dir/config.json and, if it exists, dir/generation_config.json (its eos_token_id wins if
// given). Fields that are absent have the defaults of the model's family. Errors name file, field,
// expected and found. NotFound: no config.json. InvalidArgument: malformed or contradictory.
// Unimplemented: an architecture, activation, rope type or quantisation not supported.
// `dir` may also name a synthetic model (synthetic_model.h).
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);

// The same of a config.json that was read already; `context` (its path) begins the messages.
absl::StatusOr<ModelConfig> ParseModelConfig(const nlohmann::json& value,
                                             const std::string& context);

// "opt", "llama", "mistral".
absl::string_view FamilyName(ModelFamily family);

}  // namespace thinwire
