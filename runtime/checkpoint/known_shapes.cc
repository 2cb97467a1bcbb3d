#include "runtime/checkpoint/known_shapes.h"

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

// OPT (Zhang et al., arXiv 2205.01068, table 1); fp16, 2048 positions, ffn 4 * hidden.
struct OptShape {
  absl::string_view name;
  int64_t layers, heads, hidden;
};

constexpr std::array<OptShape, 7> kOpt = {{
    {"opt-125m", 12, 12, 768},
    {"opt-1.3b", 24, 32, 2048},
    {"opt-6.7b", 32, 32, 4096},
    {"opt-13b", 40, 40, 5120},
    {"opt-30b", 48, 56, 7168},
    {"opt-66b", 64, 72, 9216},
    {"opt-175b", 96, 96, 12288},
}};

// LLaMA 2 (arXiv 2307.09288), LLaMA 3 (arXiv 2407.21783) and Mistral (arXiv 2310.06825), as their
// published config.json have them.
struct LlamaShape {
  absl::string_view name;
  const char* model_type;
  const char* architecture;
  int64_t layers, heads, kv_heads, hidden, ffn, vocab, positions;
  double rope_theta;
  int64_t sliding_window;  // 0: none
};

constexpr std::array<LlamaShape, 6> kLlama = {{
    {"llama-2-7b", "llama", "LlamaForCausalLM", 32, 32, 32, 4096, 11008, 32000, 4096, 1e4, 0},
    {"llama-2-13b", "llama", "LlamaForCausalLM", 40, 40, 40, 5120, 13824, 32000, 4096, 1e4, 0},
    {"llama-2-70b", "llama", "LlamaForCausalLM", 80, 64, 8, 8192, 28672, 32000, 4096, 1e4, 0},
    {"llama-3-8b", "llama", "LlamaForCausalLM", 32, 32, 8, 4096, 14336, 128256, 8192, 5e5, 0},
    {"llama-3-70b", "llama", "LlamaForCausalLM", 80, 64, 8, 8192, 28672, 128256, 8192, 5e5, 0},
    {"mistral-7b", "mistral", "MistralForCausalLM", 32, 32, 8, 4096, 14336, 32000, 32768, 1e4,
     4096},
}};

nlohmann::json ConfigOf(const OptShape& shape) {
  return {{"architectures", {"OPTForCausalLM"}},
          {"model_type", "opt"},
          {"torch_dtype", "float16"},
          {"vocab_size", 50272},
          {"max_position_embeddings", 2048},
          {"num_hidden_layers", shape.layers},
          {"num_attention_heads", shape.heads},
          {"hidden_size", shape.hidden},
          {"word_embed_proj_dim", shape.hidden},
          {"ffn_dim", 4 * shape.hidden}};
}

nlohmann::json ConfigOf(const LlamaShape& shape) {
  nlohmann::json config = {{"architectures", {shape.architecture}},
                           {"model_type", shape.model_type},
                           {"torch_dtype", "float16"},
                           {"rms_norm_eps", 1e-5},
                           {"vocab_size", shape.vocab},
                           {"max_position_embeddings", shape.positions},
                           {"num_hidden_layers", shape.layers},
                           {"num_attention_heads", shape.heads},
                           {"num_key_value_heads", shape.kv_heads},
                           {"hidden_size", shape.hidden},
                           {"intermediate_size", shape.ffn},
                           {"rope_theta", shape.rope_theta}};
  if (shape.sliding_window > 0) config["sliding_window"] = shape.sliding_window;
  return config;
}

}  // namespace

std::vector<absl::string_view> KnownShapeNames() {
  std::vector<absl::string_view> names;
  for (const OptShape& shape : kOpt) names.push_back(shape.name);
  for (const LlamaShape& shape : kLlama) names.push_back(shape.name);
  return names;
}

absl::StatusOr<nlohmann::json> KnownShapeConfig(absl::string_view name) {
  for (const OptShape& shape : kOpt) {
    if (shape.name == name) return ConfigOf(shape);
  }
  for (const LlamaShape& shape : kLlama) {
    if (shape.name == name) return ConfigOf(shape);
  }
  return absl::NotFoundError(absl::StrCat("expected a folder with a config.json or one of ",
                                          absl::StrJoin(KnownShapeNames(), ", "), "; found ",
                                          QuotedForMessage(name)));
}

}  // namespace thinwire
