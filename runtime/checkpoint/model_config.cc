#include "runtime/checkpoint/model_config.h"

#include <algorithm>
#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/checkpoint/synthetic_model.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

using nlohmann::json;

// Far above every published model, low enough that products of three stay within int64_t.
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxWidth = int64_t{1} << 20;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 28;

struct Family {
  ModelFamily family;
  const char* model_type;
  const char* architecture;
  int32_t bos_token_id;  // where config.json does not mention one
  int32_t eos_token_id;
};

constexpr std::array<Family, 3> kFamilies = {{
    {ModelFamily::kOpt, "opt", "OPTForCausalLM", 2, 2},
    {ModelFamily::kLlama, "llama", "LlamaForCausalLM", 1, 2},
    {ModelFamily::kMistral, "mistral", "MistralForCausalLM", 1, 2},
}};

struct Activation {
  absl::string_view name;
  ActivationKind kind;
};

constexpr std::array<Activation, 5> kActivations = {{
    {"relu", ActivationKind::kRelu},
    {"silu", ActivationKind::kSilu},
    {"gelu", ActivationKind::kGelu},
    {"gelu_new", ActivationKind::kGeluTanh},
    {"gelu_pytorch_tanh", ActivationKind::kGeluTanh},
}};

absl::Status UnknownModel(const JsonFields& fields, absl::string_view key,
                          absl::string_view found) {
  std::string supported;
  for (const Family& family : kFamilies) {
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", family.architecture, " (",
                    family.model_type, ")");
  }
  return absl::UnimplementedError(absl::StrCat(fields.context(), ": \"", key,
                                               "\": ", QuotedForMessage(found),
                                               " is not supported; supported: ", supported));
}

absl::StatusOr<const Family*> FindFamily(const JsonFields& fields) {
  const Family* by_architecture = nullptr;
  if (const json* architectures = fields.Get("architectures"); architectures != nullptr) {
    if (!architectures->is_array() || architectures->empty() ||
        !architectures->front().is_string()) {
      return fields.Expected("architectures", "an array of strings");
    }
    const auto& name = architectures->front().get_ref<const std::string&>();
    for (const Family& family : kFamilies) {
      if (name == family.architecture) by_architecture = &family;
    }
    if (by_architecture == nullptr) return UnknownModel(fields, "architectures", name);
    if (!fields.Has("model_type")) return by_architecture;
  }
  TW_ASSIGN_OR_RETURN(const std::string model_type, fields.String("model_type"));
  for (const Family& family : kFamilies) {
    if (model_type != family.model_type) continue;
    if (by_architecture == nullptr || by_architecture == &family) return &family;
    return fields.Expected("model_type", absl::StrCat("\"", by_architecture->model_type,
                                                      "\" to match \"architectures\""));
  }
  return UnknownModel(fields, "model_type", model_type);
}

absl::Status ParseQuantization(const JsonFields& fields, ModelConfig* config) {
  if (!fields.Has("quantization_config")) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(const JsonFields quantization, fields.Object("quantization_config"));
  TW_ASSIGN_OR_RETURN(const std::string method, quantization.String("quant_method"));
  if (method == "gptq") {
    TW_ASSIGN_OR_RETURN(config->gptq, ParseGptqConfig(quantization));
    return absl::OkStatus();
  }
  if (method == "vptq") {
    TW_ASSIGN_OR_RETURN(config->vptq, ParseVptqConfig(quantization));
    return absl::OkStatus();
  }
  return absl::UnimplementedError(absl::StrCat(quantization.context(), ": quant_method ",
                                               QuotedForMessage(method),
                                               " is not supported; supported: gptq, vptq"));
}

absl::StatusOr<ActivationKind> ParseActivation(const JsonFields& fields, absl::string_view key,
                                               absl::string_view absent) {
  TW_ASSIGN_OR_RETURN(const std::string name, fields.StringOr(key, absent));
  std::string supported;
  for (const Activation& known : kActivations) {
    if (known.name == absl::string_view(name)) return known.kind;
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", known.name);
  }
  return absl::UnimplementedError(absl::StrCat(fields.context(), ": \"", key,
                                               "\": ", QuotedForMessage(name),
                                               " is not supported; supported: ", supported));
}

absl::StatusOr<DType> ParseWeightsDType(const JsonFields& fields) {
  const char* key = fields.Has("dtype") ? "dtype" : "torch_dtype";
  TW_ASSIGN_OR_RETURN(const std::string name, fields.StringOr(key, "float16"));
  if (name == "float32") return DType::kF32;
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  return fields.Expected(key, "\"float32\", \"float16\" or \"bfloat16\"");
}

// A token id, an array of them, or null; `vocab` bounds them.
absl::StatusOr<std::vector<int32_t>> ParseTokenIds(const JsonFields& fields, absl::string_view key,
                                                   int64_t vocab) {
  std::vector<int32_t> ids;
  const json* value = fields.Get(key);
  if (value == nullptr) return ids;
  for (const json& item : value->is_array() ? *value : json::array({*value})) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() >= static_cast<uint64_t>(vocab)) {
      return absl::InvalidArgumentError(absl::StrCat(fields.context(), ": \"", key,
                                                     "\": expected a token id in [0, ", vocab,
                                                     "), found ", DescribeJson(item)));
    }
    const auto id = item.get<int32_t>();
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return ids;
}

absl::Status ParseSpecialTokens(const JsonFields& fields, const Family& family,
                                ModelConfig* config) {
  TW_ASSIGN_OR_RETURN(config->eos_token_ids, ParseTokenIds(fields, "eos_token_id", config->vocab));
  if (!fields.Mentions("eos_token_id") && family.eos_token_id < config->vocab) {
    config->eos_token_ids = {family.eos_token_id};
  }
  config->bos_token_id = -1;
  if (!fields.Mentions("bos_token_id")) {
    if (family.bos_token_id < config->vocab) config->bos_token_id = family.bos_token_id;
  } else if (fields.Has("bos_token_id")) {
    TW_ASSIGN_OR_RETURN(const int64_t bos, fields.Int("bos_token_id", 0, config->vocab - 1));
    config->bos_token_id = static_cast<int32_t>(bos);
  }
  return absl::OkStatus();
}

absl::Status CheckFullRotation(const JsonFields& fields) {
  TW_ASSIGN_OR_RETURN(const double factor, fields.PositiveDoubleOr("partial_rotary_factor", 1.0));
  if (factor == 1.0) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(fields.context(), ": \"partial_rotary_factor\": ",
                                               factor, " is not supported; supported: 1"));
}

absl::StatusOr<double> ParseScalingFactor(const JsonFields& scaling) {
  TW_ASSIGN_OR_RETURN(const double factor, scaling.PositiveDouble("factor"));
  if (factor < 1.0) return scaling.Expected("factor", "a number of at least 1");
  return factor;
}

// Older files have rope_theta and rope_scaling (null: none), newer ones both in rope_parameters.
absl::StatusOr<RopeConfig> ParseRope(const JsonFields& fields) {
  RopeConfig rope;
  TW_RETURN_IF_ERROR(CheckFullRotation(fields));
  TW_ASSIGN_OR_RETURN(rope.theta, fields.PositiveDoubleOr("rope_theta", rope.theta));
  const bool newer = fields.Has("rope_parameters");
  if (!newer && !fields.Has("rope_scaling")) return rope;
  if (newer && fields.Has("rope_scaling")) {
    return fields.Expected("rope_scaling", "nothing beside \"rope_parameters\"");
  }
  TW_ASSIGN_OR_RETURN(const JsonFields scaling,
                      fields.Object(newer ? "rope_parameters" : "rope_scaling"));
  TW_RETURN_IF_ERROR(CheckFullRotation(scaling));
  TW_ASSIGN_OR_RETURN(rope.theta, scaling.PositiveDoubleOr("rope_theta", rope.theta));
  const char* key = scaling.Has("rope_type") || !scaling.Has("type") ? "rope_type" : "type";
  std::string kind = "default";
  if (scaling.Has(key) || !newer) {
    TW_ASSIGN_OR_RETURN(kind, scaling.String(key));
  }
  if (kind == "default") return rope;
  if (kind == "linear") {
    rope.scaling = RopeScalingKind::kLinear;
    TW_ASSIGN_OR_RETURN(rope.factor, ParseScalingFactor(scaling));
    return rope;
  }
  if (kind == "llama3") {
    rope.scaling = RopeScalingKind::kLlama3;
    TW_ASSIGN_OR_RETURN(rope.factor, ParseScalingFactor(scaling));
    TW_ASSIGN_OR_RETURN(rope.low_freq_factor, scaling.PositiveDouble("low_freq_factor"));
    TW_ASSIGN_OR_RETURN(rope.high_freq_factor, scaling.PositiveDouble("high_freq_factor"));
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return scaling.Expected("high_freq_factor", absl::StrCat("more than \"low_freq_factor\" (",
                                                               rope.low_freq_factor, ")"));
    }
    TW_ASSIGN_OR_RETURN(rope.original_max_positions,
                        scaling.Int("original_max_position_embeddings", 1, kMaxPositions));
    return rope;
  }
  return absl::UnimplementedError(absl::StrCat(scaling.context(), ": rope type ",
                                               QuotedForMessage(kind),
                                               " is not supported; supported: default, linear, "
                                               "llama3"));
}

absl::Status ParseHeads(const JsonFields& fields, bool grouped, ModelConfig* config) {
  TW_ASSIGN_OR_RETURN(config->num_heads, fields.Int("num_attention_heads", 1, kMaxHeads));
  config->num_kv_heads = config->num_heads;
  if (grouped) {
    TW_ASSIGN_OR_RETURN(config->num_kv_heads,
                        fields.IntOr("num_key_value_heads", config->num_heads, 1, kMaxHeads));
    if (config->num_heads % config->num_kv_heads != 0) {
      return fields.Expected(
          "num_key_value_heads",
          absl::StrCat("a divisor of \"num_attention_heads\" (", config->num_heads, ")"));
    }
  }
  if (grouped && fields.Has("head_dim")) {
    TW_ASSIGN_OR_RETURN(config->head_dim, fields.Int("head_dim", 1, kMaxHeadDim));
  } else {
    if (config->hidden % config->num_heads != 0) {
      return fields.Expected("num_attention_heads",
                             absl::StrCat("a divisor of \"hidden_size\" (", config->hidden, ")"));
    }
    config->head_dim = config->hidden / config->num_heads;
  }
  if (grouped && config->head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.context(),
                     ": \"head_dim\": expected an even number, since rotary position embedding "
                     "pairs dimensions, found ",
                     config->head_dim));
  }
  return absl::OkStatus();
}

absl::Status ParseOpt(const JsonFields& fields, ModelConfig* config) {
  TW_RETURN_IF_ERROR(ParseHeads(fields, /*grouped=*/false, config));
  TW_ASSIGN_OR_RETURN(config->ffn, fields.Int("ffn_dim", 1, kMaxWidth));
  TW_ASSIGN_OR_RETURN(config->activation, ParseActivation(fields, "activation_function", "relu"));
  TW_ASSIGN_OR_RETURN(config->tie_embeddings, fields.BoolOr("tie_word_embeddings", true));
  TW_ASSIGN_OR_RETURN(const bool bias, fields.BoolOr("enable_bias", true));
  config->attention_bias = config->attention_out_bias = config->mlp_bias = bias;
  TW_ASSIGN_OR_RETURN(config->norm_before, fields.BoolOr("do_layer_norm_before", true));
  TW_ASSIGN_OR_RETURN(const bool no_final_norm, fields.BoolOr("_remove_final_layer_norm", false));
  config->final_norm = config->norm_before && !no_final_norm;
  TW_ASSIGN_OR_RETURN(config->norm_affine, fields.BoolOr("layer_norm_elementwise_affine", true));
  TW_ASSIGN_OR_RETURN(config->embed_dim,
                      fields.IntOr("word_embed_proj_dim", config->hidden, 1, kMaxWidth));
  config->norm_epsilon = 1e-5;
  return absl::OkStatus();
}

absl::Status ParseLlama(const JsonFields& fields, ModelConfig* config) {
  TW_RETURN_IF_ERROR(ParseHeads(fields, /*grouped=*/true, config));
  TW_ASSIGN_OR_RETURN(config->ffn, fields.Int("intermediate_size", 1, kMaxWidth));
  TW_ASSIGN_OR_RETURN(config->activation, ParseActivation(fields, "hidden_act", "silu"));
  TW_ASSIGN_OR_RETURN(config->tie_embeddings, fields.BoolOr("tie_word_embeddings", false));
  TW_ASSIGN_OR_RETURN(config->norm_epsilon, fields.PositiveDoubleOr("rms_norm_eps", 1e-6));
  TW_ASSIGN_OR_RETURN(config->rope, ParseRope(fields));
  config->embed_dim = config->hidden;
  if (config->family == ModelFamily::kLlama) {
    TW_ASSIGN_OR_RETURN(config->attention_bias, fields.BoolOr("attention_bias", false));
    config->attention_out_bias = config->attention_bias;
    TW_ASSIGN_OR_RETURN(config->mlp_bias, fields.BoolOr("mlp_bias", false));
  } else {
    // The first Mistral had a window, and it is the default where the field is missing; null means
    // none.
    const int64_t absent = fields.Mentions("sliding_window") ? 0 : 4096;
    TW_ASSIGN_OR_RETURN(config->sliding_window,
                        fields.IntOr("sliding_window", absent, 1, kMaxPositions));
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> ParseConfig(const JsonFields& fields) {
  TW_ASSIGN_OR_RETURN(const Family* family, FindFamily(fields));
  ModelConfig config;
  TW_RETURN_IF_ERROR(ParseQuantization(fields, &config));
  config.family = family->family;
  config.architecture = family->architecture;
  TW_ASSIGN_OR_RETURN(config.vocab, fields.Int("vocab_size", 1, kMaxVocab));
  TW_ASSIGN_OR_RETURN(config.hidden, fields.Int("hidden_size", 1, kMaxWidth));
  TW_ASSIGN_OR_RETURN(config.num_layers, fields.Int("num_hidden_layers", 1, kMaxLayers));
  TW_ASSIGN_OR_RETURN(config.max_positions,
                      fields.Int("max_position_embeddings", 1, kMaxPositions));
  TW_ASSIGN_OR_RETURN(config.weights_dtype, ParseWeightsDType(fields));
  TW_RETURN_IF_ERROR(ParseSpecialTokens(fields, *family, &config));
  TW_RETURN_IF_ERROR(config.family == ModelFamily::kOpt ? ParseOpt(fields, &config)
                                                        : ParseLlama(fields, &config));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const json& value, const std::string& context) {
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(value, context));
  return ParseConfig(fields);
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  if (IsSyntheticModel(dir)) return SyntheticConfig(dir);
  const std::string path = absl::StrCat(dir, "/config.json");
  TW_ASSIGN_OR_RETURN(const json value, ReadJsonFile(path));
  TW_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(value, path));

  const std::string generation_path = absl::StrCat(dir, "/generation_config.json");
  absl::StatusOr<json> generation_value = ReadJsonFile(generation_path);
  if (absl::IsNotFound(generation_value.status())) return config;
  TW_RETURN_IF_ERROR(generation_value.status());
  TW_ASSIGN_OR_RETURN(const JsonFields generation,
                      JsonFields::Create(*generation_value, generation_path));
  if (generation.Has("eos_token_id")) {
    TW_ASSIGN_OR_RETURN(config.eos_token_ids,
                        ParseTokenIds(generation, "eos_token_id", config.vocab));
  }
  return config;
}

absl::string_view FamilyName(ModelFamily family) {
  for (const Family& known : kFamilies) {
    if (known.family == family) return known.model_type;
  }
  TW_CHECK(false);
  return "";
}

}  // namespace thinwire
