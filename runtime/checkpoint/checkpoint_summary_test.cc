#include "runtime/checkpoint/checkpoint_summary.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

std::string Config(const std::string& more) {
  return R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 16,
    "max_position_embeddings": 64, "hidden_act": "silu")" +
         more + "}";
}

TestTensor Zeros(const std::string& name, const std::string& dtype, std::vector<int64_t> shape) {
  int64_t bytes = dtype == "F16" ? 2 : 4;
  for (const int64_t size : shape) bytes *= size;
  return {name, dtype, std::move(shape), std::string(bytes, '\0')};
}

TEST(CheckpointSummaryTest, ScalesAndZerosCountToTheWeightsTheyBelongTo) {
  const TestFolder folder;
  folder.Write("config.json", Config(R"(, "quantization_config": {"quant_method": "gptq", "bits": 3,
                      "group_size": 16})"));
  const std::string up = "model.layers.0.mlp.up_proj";
  folder.Write("model.safetensors",
               SafetensorsBytes(
                   {Zeros(up + ".qweight", "I32", {3, 64}), Zeros(up + ".qzeros", "I32", {2, 6}),
                    Zeros(up + ".scales", "F16", {2, 64}), Zeros(up + ".g_idx", "I32", {32}),
                    Zeros("model.layers.0.self_attn.scales", "F16", {2}),
                    Zeros("model.embed_tokens.weight", "F16", {16, 32})}));
  const CheckpointSummary summary = SummarizeCheckpoint(folder.path()).value();
  const TensorGroup& mlp = summary.by_part.at("mlp");
  EXPECT_EQ(mlp.num_tensors, 4);
  EXPECT_EQ(mlp.num_parameters, 32 * 64);
  EXPECT_EQ(mlp.size_bytes, 4 * 3 * 64 + 4 * 2 * 6 + 2 * 2 * 64 + 4 * 32);
  EXPECT_EQ(summary.by_dtype.at("gptq3").num_parameters, 32 * 64);
  EXPECT_EQ(summary.by_dtype.at("gptq3").size_bytes, mlp.size_bytes);
  EXPECT_EQ(summary.by_dtype.at("F16").num_parameters, 2 + 16 * 32);
  EXPECT_EQ(summary.by_dtype.count("I32"), 0u);
  EXPECT_EQ(summary.by_part.at("attention").num_parameters, 2);
  EXPECT_EQ(summary.total.num_parameters, 32 * 64 + 2 + 16 * 32);
  EXPECT_DOUBLE_EQ(mlp.bits_per_weight(), 8.0 * mlp.size_bytes / (32 * 64));
}

TEST(CheckpointSummaryTest, DenseWeightsHaveTheBitsOfTheirDtype) {
  const TestFolder folder;
  folder.Write("config.json", Config(""));
  folder.Write("model.safetensors",
               SafetensorsBytes({Zeros("model.embed_tokens.weight", "F16", {16, 32}),
                                 Zeros("model.norm.weight", "F32", {32})}));
  const CheckpointSummary summary = SummarizeCheckpoint(folder.path()).value();
  EXPECT_EQ(summary.by_part.at("embedding").bits_per_weight(), 16.0);
  EXPECT_EQ(summary.by_part.at("norm").bits_per_weight(), 32.0);
  EXPECT_EQ(summary.total.num_parameters, 16 * 32 + 32);
}

}  // namespace
}  // namespace thinwire
