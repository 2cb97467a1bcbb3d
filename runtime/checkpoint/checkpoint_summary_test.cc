#include "runtime/checkpoint/checkpoint_summary.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/checkpoint/rank_share.h"
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
  const LinearGroup& linear = summary.linear;
  EXPECT_EQ(linear.total.size_bytes, mlp.size_bytes);
  EXPECT_EQ(linear.bits_per_weight(linear.codes_bytes), 3.0);
  EXPECT_EQ(linear.bits_per_weight(linear.scales_bytes), 1.0);
  EXPECT_EQ(linear.zeros_bytes, 4 * 2 * 6);
  EXPECT_EQ(linear.g_idx_bytes, 4 * 32);
  EXPECT_EQ(summary.scheme, "gptq3");
}

TEST(CheckpointSummaryTest, ARankHasItsPartOfEachTensor) {
  const TestFolder folder;
  folder.Write("config.json", Config(R"(, "quantization_config": {"quant_method": "gptq", "bits": 4,
                      "group_size": 16, "desc_act": true})"));
  const std::string down = "model.layers.0.mlp.down_proj";
  // The first 32 inputs are in groups 0, 1 and 3, the others in 2 and 3.
  std::vector<int32_t> g_idx;
  for (int i = 0; i < 64; ++i) g_idx.push_back(i < 24 ? i / 12 : i < 32 ? 3 : i < 48 ? 2 : 3);
  TestTensor groups = Zeros(down + ".g_idx", "I32", {64});
  groups.bytes = BytesOf(g_idx);
  folder.Write("model.safetensors",
               SafetensorsBytes({Zeros(down + ".qweight", "I32", {8, 32}),
                                 Zeros(down + ".qzeros", "I32", {4, 4}),
                                 Zeros(down + ".scales", "F16", {4, 32}), groups,
                                 Zeros("model.layers.0.self_attn.v_proj.weight", "F16", {32, 32}),
                                 Zeros("model.embed_tokens.weight", "F16", {16, 32}),
                                 Zeros("model.norm.weight", "F32", {32})}));
  const CheckpointSummary summary = SummarizeCheckpoint(folder.path()).value();
  const RankShare share = ShareOfRank(folder.path(), summary, 2).value();
  EXPECT_EQ(share.weight_bytes, 4 * 8 * 32 / 2 + (4 * 4 * 4 + 2 * 4 * 32) * 3 / 4 + 4 * 64 / 2 +
                                    2 * 32 * 32 / 2 + 2 * 16 * 32 / 2 + 4 * 32);
  EXPECT_EQ(share.kv.bytes_per_token(), 2 * 16 * 2);
  EXPECT_EQ(ShareOfRank(folder.path(), summary, 1)->weight_bytes, summary.total.size_bytes);
  const absl::Status status = ShareOfRank(folder.path(), summary, 3).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()), folder.path() + ": --tp: expected one of 1, 2, found 3");
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
  EXPECT_EQ(summary.scheme, "w16a16");
  EXPECT_EQ(summary.linear.total.num_tensors, 0);
}

}  // namespace
}  // namespace thinwire
