#include "runtime/checkpoint/model_config.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const char kOpt350m[] = R"({
  "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["OPTForCausalLM"],
  "attention_dropout": 0.0, "bos_token_id": 2, "do_layer_norm_before": false, "dropout": 0.1,
  "eos_token_id": 2, "ffn_dim": 4096, "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0,
  "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 16,
  "num_hidden_layers": 24, "pad_token_id": 1, "prefix": "</s>", "torch_dtype": "float16",
  "use_cache": true, "vocab_size": 50272, "word_embed_proj_dim": 512})";

const char kOpt66b[] = R"({
  "_remove_final_layer_norm": false, "activation_function": "relu",
  "architectures": ["OPTForCausalLM"], "bos_token_id": 2, "do_layer_norm_before": true,
  "eos_token_id": 2, "ffn_dim": 36864, "hidden_size": 9216, "max_position_embeddings": 2048,
  "model_type": "opt", "num_attention_heads": 72, "num_hidden_layers": 64, "pad_token_id": 1,
  "torch_dtype": "float16", "vocab_size": 50272, "word_embed_proj_dim": 9216})";

const char kLlama2_7b[] = R"({
  "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 4096, "intermediate_size": 11008, "max_position_embeddings": 4096,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null,
  "tie_word_embeddings": false, "torch_dtype": "float16", "vocab_size": 32000})";

const char kLlama2_70b[] = R"({
  "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
  "hidden_size": 8192, "intermediate_size": 28672, "max_position_embeddings": 4096,
  "model_type": "llama", "num_attention_heads": 64, "num_hidden_layers": 80,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "torch_dtype": "float16", "vocab_size": 32000})";

const char kLlama31_8b[] = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
  "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "vocab_size": 128256})";

const char kMistral7b[] = R"({
  "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
  "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
  "vocab_size": 32000})";

absl::StatusOr<ModelConfig> Load(const std::string& config, const std::string& generation = "") {
  const TestFolder folder;
  folder.Write("config.json", config);
  if (!generation.empty()) folder.Write("generation_config.json", generation);
  return LoadModelConfig(folder.path());
}

// `base` with the fields of `changes` replaced (null included).
std::string With(const char* base, const json& changes) {
  json config = json::parse(base);
  config.update(changes);
  return config.dump();
}

std::string Without(const char* base, const std::string& key) {
  json config = json::parse(base);
  config.erase(key);
  return config.dump();
}

void ExpectError(const std::string& config, absl::StatusCode code, const std::string& text) {
  const absl::Status status = Load(config).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("config.json"), HasSubstr(text), ::testing::Not(HasSubstr("\n"))));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(ModelConfigTest, Opt350mNormsAfterAndProjectsItsEmbeddings) {
  const ModelConfig config = Load(kOpt350m).value();
  EXPECT_EQ(config.family, ModelFamily::kOpt);
  EXPECT_EQ(FamilyName(config.family), "opt");
  EXPECT_EQ(config.architecture, "OPTForCausalLM");
  EXPECT_EQ(config.vocab, 50272);
  EXPECT_EQ(config.hidden, 1024);
  EXPECT_EQ(config.embed_dim, 512);
  EXPECT_EQ(config.num_layers, 24);
  EXPECT_EQ(config.num_heads, 16);
  EXPECT_EQ(config.num_kv_heads, 16);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.ffn, 4096);
  EXPECT_EQ(config.max_positions, 2048);
  EXPECT_EQ(config.norm_epsilon, 1e-5);
  EXPECT_EQ(config.activation, ActivationKind::kRelu);
  EXPECT_FALSE(config.norm_before);
  EXPECT_FALSE(config.final_norm);
  EXPECT_TRUE(config.norm_affine);
  EXPECT_TRUE(config.tie_embeddings);
  EXPECT_TRUE(config.attention_bias && config.attention_out_bias && config.mlp_bias);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2));
  EXPECT_EQ(config.bos_token_id, 2);
  EXPECT_EQ(config.weights_dtype, DType::kF16);
}

TEST(ModelConfigTest, Opt66bHasAFinalNorm) {
  const ModelConfig config = Load(kOpt66b).value();
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.embed_dim, 9216);
  EXPECT_TRUE(config.norm_before);
  EXPECT_TRUE(config.final_norm);
  EXPECT_FALSE(Load(With(kOpt66b, {{"_remove_final_layer_norm", true}}))->final_norm);
}

TEST(ModelConfigTest, OptCanLackBiasesAndNormWeights) {
  const ModelConfig config =
      Load(With(kOpt66b, {{"enable_bias", false}, {"layer_norm_elementwise_affine", false}}))
          .value();
  EXPECT_FALSE(config.attention_bias || config.attention_out_bias || config.mlp_bias);
  EXPECT_FALSE(config.norm_affine);
}

TEST(ModelConfigTest, Llama2HasTheDefaults) {
  const ModelConfig small = Load(kLlama2_7b).value();
  EXPECT_EQ(small.family, ModelFamily::kLlama);
  EXPECT_EQ(FamilyName(small.family), "llama");
  EXPECT_EQ(small.head_dim, 128);
  EXPECT_EQ(small.num_kv_heads, 32);
  EXPECT_EQ(small.ffn, 11008);
  EXPECT_EQ(small.embed_dim, 4096);
  EXPECT_EQ(small.activation, ActivationKind::kSilu);
  EXPECT_EQ(small.norm_epsilon, 1e-5);
  EXPECT_EQ(small.rope.theta, 10000.0);
  EXPECT_EQ(small.rope.scaling, RopeScalingKind::kNone);
  EXPECT_EQ(small.sliding_window, 0);
  EXPECT_FALSE(small.tie_embeddings);
  EXPECT_FALSE(small.attention_bias || small.attention_out_bias || small.mlp_bias);
  EXPECT_EQ(Load(Without(kLlama2_7b, "num_key_value_heads"))->num_kv_heads, 32);
  EXPECT_EQ(Load(Without(kLlama2_7b, "rms_norm_eps"))->norm_epsilon, 1e-6);

  const ModelConfig large = Load(kLlama2_70b).value();
  EXPECT_EQ(large.num_heads, 64);
  EXPECT_EQ(large.num_kv_heads, 8);
  EXPECT_EQ(large.head_dim, 128);
}

TEST(ModelConfigTest, LlamaAttentionBiasIncludesTheOutputProjection) {
  const ModelConfig config =
      Load(With(kLlama2_7b, {{"attention_bias", true}, {"mlp_bias", true}})).value();
  EXPECT_TRUE(config.attention_bias && config.attention_out_bias && config.mlp_bias);
}

TEST(ModelConfigTest, Llama31ScalesItsRope) {
  const ModelConfig config = Load(kLlama31_8b).value();
  EXPECT_EQ(config.rope.theta, 500000.0);
  EXPECT_EQ(config.rope.scaling, RopeScalingKind::kLlama3);
  EXPECT_EQ(config.rope.factor, 8.0);
  EXPECT_EQ(config.rope.low_freq_factor, 1.0);
  EXPECT_EQ(config.rope.high_freq_factor, 4.0);
  EXPECT_EQ(config.rope.original_max_positions, 8192);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(128001, 128008, 128009));
  EXPECT_EQ(config.bos_token_id, 128000);
  EXPECT_EQ(config.weights_dtype, DType::kBF16);
}

TEST(ModelConfigTest, RopeParametersOfNewerFilesMeanTheSame) {
  json config = json::parse(kLlama31_8b);
  config["rope_parameters"] = config["rope_scaling"];
  config["rope_parameters"]["rope_theta"] = 250000;
  config.erase("rope_scaling");
  config.erase("rope_theta");
  config.erase("torch_dtype");
  config["dtype"] = "float32";
  const ModelConfig loaded = Load(config.dump()).value();
  EXPECT_EQ(loaded.rope.theta, 250000.0);
  EXPECT_EQ(loaded.rope.scaling, RopeScalingKind::kLlama3);
  EXPECT_EQ(loaded.rope.factor, 8.0);
  EXPECT_EQ(loaded.weights_dtype, DType::kF32);
  const RopeConfig plain =
      Load(With(kLlama2_7b, {{"rope_parameters", {{"rope_theta", 5.0}}}}))->rope;
  EXPECT_EQ(plain.theta, 5.0);
  EXPECT_EQ(plain.scaling, RopeScalingKind::kNone);
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  ExpectError(config.dump(), kInvalid, "\"rope_scaling\": expected nothing");
}

TEST(ModelConfigTest, RopeScalingKnowsBothSpellingsOfItsType) {
  const RopeConfig linear =
      Load(With(kLlama2_7b, {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}))->rope;
  EXPECT_EQ(linear.scaling, RopeScalingKind::kLinear);
  EXPECT_EQ(linear.factor, 2.0);
  EXPECT_EQ(Load(With(kLlama2_7b, {{"rope_scaling", {{"rope_type", "default"}}}}))->rope.scaling,
            RopeScalingKind::kNone);
  for (const char* type : {"dynamic", "yarn", "longrope"}) {
    for (const char* key : {"type", "rope_type"}) {
      ExpectError(With(kLlama2_7b, {{"rope_scaling", {{key, type}, {"factor", 2.0}}}}),
                  kUnimplemented, absl::StrCat("rope type \"", type, "\""));
    }
  }
}

TEST(ModelConfigTest, MalformedRopeIsRefused) {
  const auto expect = [](const json& scaling, const std::string& text) {
    ExpectError(With(kLlama2_7b, {{"rope_scaling", scaling}}), kInvalid, text);
  };
  expect("linear", "\"rope_scaling\": expected an object");
  expect({{"factor", 2.0}}, "\"rope_type\": expected a string");
  expect({{"type", "linear"}}, "\"factor\": expected a positive number, found nothing");
  expect({{"type", "linear"}, {"factor", 0.5}}, "at least 1, found 0.5");
  json llama3 = {{"type", "llama3"},
                 {"factor", 8},
                 {"low_freq_factor", 4},
                 {"high_freq_factor", 4},
                 {"original_max_position_embeddings", 8192}};
  expect(llama3, "\"high_freq_factor\": expected more than");
  llama3["low_freq_factor"] = 1;
  llama3.erase("original_max_position_embeddings");
  expect(llama3, "\"original_max_position_embeddings\": expected a positive integer");
  ExpectError(With(kLlama2_7b, {{"rope_theta", 0}}), kInvalid, "\"rope_theta\"");
  ExpectError(With(kLlama2_7b, {{"partial_rotary_factor", 0.5}}), kUnimplemented,
              "\"partial_rotary_factor\": 0.5");
}

TEST(ModelConfigTest, MistralHasAWindowUnlessItIsNull) {
  const ModelConfig config = Load(kMistral7b).value();
  EXPECT_EQ(config.family, ModelFamily::kMistral);
  EXPECT_EQ(FamilyName(config.family), "mistral");
  EXPECT_EQ(config.sliding_window, 4096);
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_FALSE(config.attention_bias || config.attention_out_bias || config.mlp_bias);
  EXPECT_EQ(Load(With(kMistral7b, {{"sliding_window", nullptr}}))->sliding_window, 0);
  EXPECT_EQ(Load(Without(kMistral7b, "sliding_window"))->sliding_window, 4096);
  ExpectError(With(kMistral7b, {{"sliding_window", 0}}), kInvalid, "\"sliding_window\"");
}

TEST(ModelConfigTest, HeadDimMayDifferFromHiddenByHeads) {
  EXPECT_EQ(Load(With(kMistral7b, {{"head_dim", 160}}))->head_dim, 160);
  EXPECT_EQ(Load(With(kMistral7b, {{"head_dim", nullptr}}))->head_dim, 128);
  EXPECT_EQ(Load(With(kLlama2_7b, {{"hidden_size", 4097}, {"head_dim", 128}}))->head_dim, 128);
  ExpectError(With(kLlama2_7b, {{"hidden_size", 4097}}), kInvalid,
              "expected a divisor of \"hidden_size\" (4097), found 32");
  ExpectError(With(kOpt66b, {{"hidden_size", 9217}}), kInvalid, "expected a divisor");
  ExpectError(With(kLlama2_7b, {{"head_dim", 127}}), kInvalid, "expected an even number");
}

TEST(ModelConfigTest, GenerationConfigWinsForEndTokens) {
  EXPECT_THAT(Load(kLlama2_7b, R"({"eos_token_id": [7, 8, 7]})")->eos_token_ids, ElementsAre(7, 8));
  EXPECT_THAT(Load(kLlama2_7b, R"({"eos_token_id": 9})")->eos_token_ids, ElementsAre(9));
  EXPECT_THAT(Load(kLlama2_7b, R"({"eos_token_id": null})")->eos_token_ids, ElementsAre(2));
  EXPECT_THAT(Load(kLlama2_7b, "{}")->eos_token_ids, ElementsAre(2));
  const absl::Status outside = Load(kLlama2_7b, R"({"eos_token_id": 32000})").status();
  EXPECT_EQ(outside.code(), kInvalid);
  EXPECT_THAT(std::string(outside.message()),
              HasSubstr("generation_config.json: \"eos_token_id\": expected a token id in "
                        "[0, 32000), found 32000"));
  EXPECT_EQ(Load(kLlama2_7b, "{").status().code(), kInvalid);
  EXPECT_EQ(Load(kLlama2_7b, "[]").status().code(), kInvalid);
}

TEST(ModelConfigTest, SpecialTokensMayBeNullOrLeftToTheFamily) {
  const ModelConfig none =
      Load(With(kLlama2_7b, {{"eos_token_id", nullptr}, {"bos_token_id", nullptr}})).value();
  EXPECT_THAT(none.eos_token_ids, IsEmpty());
  EXPECT_EQ(none.bos_token_id, -1);
  EXPECT_THAT(Load(Without(kLlama2_7b, "eos_token_id"))->eos_token_ids, ElementsAre(2));
  EXPECT_EQ(Load(Without(kLlama2_7b, "bos_token_id"))->bos_token_id, 1);
  EXPECT_EQ(Load(Without(kOpt66b, "bos_token_id"))->bos_token_id, 2);
  for (const json& bad : {json(-1), json(32000), json("2"), json(2.0), json({1, "x"})}) {
    ExpectError(With(kLlama2_7b, {{"eos_token_id", bad}}), kInvalid, "\"eos_token_id\"");
  }
  ExpectError(With(kLlama2_7b, {{"bos_token_id", 32000}}), kInvalid, "\"bos_token_id\"");
}

TEST(ModelConfigTest, ActivationsAreKnownByTheirNames) {
  const auto activation = [](const char* name) {
    return Load(With(kOpt66b, {{"activation_function", name}}))->activation;
  };
  EXPECT_EQ(activation("gelu"), ActivationKind::kGelu);
  EXPECT_EQ(activation("gelu_new"), ActivationKind::kGeluTanh);
  EXPECT_EQ(activation("gelu_pytorch_tanh"), ActivationKind::kGeluTanh);
  EXPECT_EQ(activation("silu"), ActivationKind::kSilu);
  ExpectError(With(kOpt66b, {{"activation_function", "relu2"}}), kUnimplemented,
              "\"activation_function\": \"relu2\" is not supported; supported: relu");
  ExpectError(With(kLlama2_7b, {{"hidden_act", 3}}), kInvalid, "\"hidden_act\"");
}

TEST(ModelConfigTest, OtherModelsAreRefusedByName) {
  ExpectError(With(kLlama2_7b, {{"architectures", {"Qwen2ForCausalLM"}}}), kUnimplemented,
              "\"Qwen2ForCausalLM\" is not supported; supported: OPTForCausalLM (opt), "
              "LlamaForCausalLM (llama), MistralForCausalLM (mistral)");
  json by_type = {{"model_type", "gpt2"}, {"architectures", nullptr}};
  ExpectError(With(kLlama2_7b, by_type), kUnimplemented, "\"model_type\": \"gpt2\"");
  by_type["model_type"] = "llama";
  EXPECT_EQ(Load(With(kLlama2_7b, by_type))->architecture, "LlamaForCausalLM");
  EXPECT_TRUE(Load(Without(kLlama2_7b, "model_type")).ok());
  ExpectError(With(kLlama2_7b, {{"model_type", "mistral"}}), kInvalid,
              "\"model_type\": expected \"llama\"");
  ExpectError(With(kLlama2_7b, {{"architectures", "LlamaForCausalLM"}}), kInvalid,
              "\"architectures\": expected an array");
  ExpectError("{}", kInvalid, "\"model_type\": expected a string, found nothing");
}

json GptqModel(const json& changes) {
  json quantization = {{"quant_method", "gptq"}, {"bits", 4},         {"group_size", 128},
                       {"desc_act", true},       {"sym", true},       {"damp_percent", 0.01},
                       {"lm_head", false},       {"dynamic", nullptr}};
  quantization.merge_patch(changes);
  return With(kLlama2_7b, {{"quantization_config", quantization}});
}

TEST(ModelConfigTest, ReadsHowGptqWeightsArePacked) {
  EXPECT_FALSE(Load(kLlama2_7b)->gptq.has_value());
  EXPECT_FALSE(Load(With(kLlama2_7b, {{"quantization_config", nullptr}}))->gptq.has_value());
  EXPECT_EQ(Load(GptqModel(json::object()))->gptq.value(),
            (GptqConfig{.bits = 4, .group_size = 128, .desc_act = true, .sym = true}));
  const GptqConfig other = {
      .bits = 3, .group_size = -1, .desc_act = false, .sym = false, .zeros_as_they_are = true};
  EXPECT_EQ(Load(GptqModel({{"bits", 3},
                            {"group_size", -1},
                            {"desc_act", nullptr},
                            {"sym", false},
                            {"checkpoint_format", "gptq_v2"}}))
                ->gptq.value(),
            other);
  EXPECT_EQ(Load(With(kLlama2_7b, {{"quantization_config", GptqConfigJson(other)}}))->gptq.value(),
            other);
}

TEST(ModelConfigTest, OtherQuantisedCheckpointsAreRefusedByName) {
  const auto expect = [](const json& changes, absl::StatusCode code, const std::string& text) {
    ExpectError(GptqModel(changes), code, "\"quantization_config\": " + text);
  };
  expect({{"quant_method", "awq"}}, kUnimplemented, "quant_method \"awq\" is not supported");
  expect({{"quant_method", nullptr}}, kInvalid, "\"quant_method\": expected a string");
  expect({{"bits", 5}}, kUnimplemented, "\"bits\": 5 is not supported; supported: 2, 3, 4, 8");
  expect({{"bits", nullptr}}, kInvalid, "\"bits\": expected a positive integer");
  expect({{"group_size", 0}}, kInvalid, "\"group_size\": expected a positive integer or -1");
  expect({{"group_size", -2}}, kInvalid, "\"group_size\"");
  expect({{"desc_act", 1}}, kInvalid, "\"desc_act\": expected true or false, found 1");
  expect({{"checkpoint_format", "marlin"}}, kUnimplemented,
         "\"checkpoint_format\": \"marlin\" is not supported");
  expect({{"is_marlin_format", true}}, kUnimplemented, "\"is_marlin_format\"");
  expect({{"lm_head", true}}, kUnimplemented, "\"lm_head\": true is not supported");
  expect({{"pack_dtype", "int16"}}, kUnimplemented, "\"pack_dtype\": \"int16\"");
  expect({{"dynamic", {{"-:lm", {{"bits", 8}}}}}}, kUnimplemented, "\"dynamic\"");
  ExpectError(With(kLlama2_7b, {{"quantization_config", "gptq"}}), kInvalid,
              "\"quantization_config\": expected an object");
}

TEST(ModelConfigTest, EverySizeMustBeAPositiveIntegerWithinReason) {
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                          "max_position_embeddings", "intermediate_size", "num_key_value_heads"}) {
    for (const json& bad : {json(0), json(-1), json("abc"), json(1.5), json(int64_t{1} << 40)}) {
      ExpectError(With(kLlama2_70b, {{key, bad}}), kInvalid,
                  absl::StrCat("\"", key, "\": expected"));
    }
  }
  for (const char* key : {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                          "max_position_embeddings", "ffn_dim"}) {
    ExpectError(Without(kOpt66b, key), kInvalid,
                absl::StrCat("\"", key, "\": expected a positive integer, found nothing"));
  }
  ExpectError(With(kOpt66b, {{"word_embed_proj_dim", 0}}), kInvalid, "\"word_embed_proj_dim\"");
  ExpectError(With(kLlama2_70b, {{"num_key_value_heads", 7}}), kInvalid,
              "expected a divisor of \"num_attention_heads\" (64), found 7");
  ExpectError(With(kLlama2_70b, {{"rms_norm_eps", 0}}), kInvalid, "\"rms_norm_eps\"");
  ExpectError(With(kLlama2_70b, {{"torch_dtype", "float64"}}), kInvalid, "\"torch_dtype\"");
  ExpectError(With(kLlama2_70b, {{"tie_word_embeddings", 1}}), kInvalid, "\"tie_word_embeddings\"");
}

TEST(ModelConfigTest, MissingAndMalformedFilesAreNamed) {
  const TestFolder folder;
  EXPECT_EQ(LoadModelConfig(folder.path()).status().code(), absl::StatusCode::kNotFound);
  ExpectError("{\"model_type\": ", kInvalid, "line 1, column 16");
  ExpectError("[]", kInvalid, "expected an object, found an array");
}

}  // namespace
}  // namespace thinwire
