#include "runtime/model/decoder_weights.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

constexpr float kAbsent = -1.0f;

// A checkpoint of fp32 tensors in memory and on disk. Every element of it is another integer, so
// that a slice from the wrong place cannot go unnoticed.
class TestModel {
 public:
  void Add(const std::string& name, std::vector<int64_t> shape) {
    const int64_t size =
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    std::vector<float> values(size);
    std::iota(values.begin(), values.end(), next_);
    next_ += static_cast<float>(size);
    tensors_.push_back({name, "F32", std::move(shape), BytesOf(values)});
    values_[name] = std::move(values);
  }

  TestTensor& tensor(const std::string& name) {
    return *std::find_if(tensors_.begin(), tensors_.end(),
                         [&](const TestTensor& tensor) { return tensor.name == name; });
  }
  void Remove(const std::string& name) {
    tensors_.erase(std::find_if(tensors_.begin(), tensors_.end(),
                                [&](const TestTensor& tensor) { return tensor.name == name; }));
  }

  Checkpoint Open() const {
    folder_.Write("model.safetensors", SafetensorsBytes(tensors_));
    return Checkpoint::Open(folder_.path()).value();
  }
  std::string file() const { return folder_.Path("model.safetensors"); }

  // Elements of a matrix, row by row.
  std::vector<float> Block(const std::string& name, Range rows, Range columns) const {
    const std::vector<float>& values = values_.at(name);
    const auto it = std::find_if(tensors_.begin(), tensors_.end(),
                                 [&](const TestTensor& tensor) { return tensor.name == name; });
    const int64_t width = it->shape.at(1);
    std::vector<float> block;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      block.insert(block.end(), values.begin() + row * width + columns.begin,
                   values.begin() + row * width + columns.end);
    }
    return block;
  }
  std::vector<float> Slice(const std::string& name, Range range) const {
    const std::vector<float>& values = values_.at(name);
    return {values.begin() + range.begin, values.begin() + range.end};
  }
  std::vector<float> Whole(const std::string& name) const { return values_.at(name); }

 private:
  TestFolder folder_;
  std::vector<TestTensor> tensors_;
  std::map<std::string, std::vector<float>> values_;
  float next_ = 0.0f;
};

std::vector<float> Join(std::vector<std::vector<float>> parts) {
  std::vector<float> all;
  for (const std::vector<float>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::vector<float> ValuesOf(const Tensor& tensor) {
  if (tensor.empty()) return {kAbsent};
  const float* data = tensor.view().data<float>();
  return {data, data + tensor.view().num_elements()};
}

ModelConfig LlamaConfig() {
  ModelConfig config;
  config.family = ModelFamily::kLlama;
  config.architecture = "LlamaForCausalLM";
  config.vocab = 10;
  config.hidden = 6;
  config.embed_dim = 6;
  config.num_layers = 3;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 2;
  config.ffn = 8;
  config.max_positions = 16;
  return config;
}

void AddLlamaLayer(const ModelConfig& config, const std::string& prefix, TestModel& model) {
  const int64_t hidden = config.hidden;
  const int64_t q_rows = config.num_heads * config.head_dim;
  const int64_t kv_rows = config.num_kv_heads * config.head_dim;
  model.Add(prefix + "input_layernorm.weight", {hidden});
  model.Add(prefix + "self_attn.q_proj.weight", {q_rows, hidden});
  model.Add(prefix + "self_attn.k_proj.weight", {kv_rows, hidden});
  model.Add(prefix + "self_attn.v_proj.weight", {kv_rows, hidden});
  model.Add(prefix + "self_attn.o_proj.weight", {hidden, q_rows});
  model.Add(prefix + "post_attention_layernorm.weight", {hidden});
  model.Add(prefix + "mlp.gate_proj.weight", {config.ffn, hidden});
  model.Add(prefix + "mlp.up_proj.weight", {config.ffn, hidden});
  model.Add(prefix + "mlp.down_proj.weight", {hidden, config.ffn});
}

void AddLlama(const ModelConfig& config, const std::string& prefix, TestModel& model) {
  model.Add(prefix + "embed_tokens.weight", {config.vocab, config.hidden});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    AddLlamaLayer(config, absl::StrCat(prefix, "layers.", layer, "."), model);
  }
  model.Add(prefix + "norm.weight", {config.hidden});
  if (!config.tie_embeddings) model.Add("lm_head.weight", {config.vocab, config.hidden});
}

ModelConfig OptConfig() {
  ModelConfig config;
  config.family = ModelFamily::kOpt;
  config.architecture = "OPTForCausalLM";
  config.vocab = 7;
  config.hidden = 8;
  config.embed_dim = 4;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 4;
  config.head_dim = 2;
  config.ffn = 12;
  config.max_positions = 5;
  config.tie_embeddings = true;
  config.attention_bias = config.attention_out_bias = config.mlp_bias = true;
  return config;
}

void AddOpt(const ModelConfig& config, const std::string& prefix, TestModel& model) {
  const int64_t hidden = config.hidden;
  const auto add_linear = [&](const std::string& name, int64_t rows, int64_t columns) {
    model.Add(name + ".weight", {rows, columns});
    model.Add(name + ".bias", {rows});
  };
  const auto add_norm = [&](const std::string& name) {
    model.Add(name + ".weight", {hidden});
    model.Add(name + ".bias", {hidden});
  };
  model.Add(prefix + "embed_tokens.weight", {config.vocab, config.embed_dim});
  model.Add(prefix + "embed_positions.weight", {config.max_positions + 2, hidden});
  model.Add(prefix + "project_in.weight", {hidden, config.embed_dim});
  model.Add(prefix + "project_out.weight", {config.embed_dim, hidden});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = absl::StrCat(prefix, "layers.", i, ".");
    add_norm(layer + "self_attn_layer_norm");
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      add_linear(absl::StrCat(layer, "self_attn.", name), hidden, hidden);
    }
    add_norm(layer + "final_layer_norm");
    add_linear(layer + "fc1", config.ffn, hidden);
    add_linear(layer + "fc2", hidden, config.ffn);
  }
  add_norm(prefix + "final_layer_norm");
}

ShardPlan PlanFor(const ModelConfig& config, const Mesh& mesh, int rank) {
  return ShardPlan::Create({.num_layers = config.num_layers,
                            .num_heads = config.num_heads,
                            .num_kv_heads = config.num_kv_heads,
                            .ffn = config.ffn,
                            .vocab = config.vocab},
                           mesh, rank)
      .value();
}

absl::StatusOr<DecoderWeights> LoadRank(const TestModel& model, const ModelConfig& config,
                                        const Mesh& mesh, int rank) {
  return LoadDecoderWeights(model.Open(), config, PlanFor(config, mesh, rank));
}

std::vector<Mesh> Meshes() { return {{1, 1}, {2, 1}, {4, 1}, {1, 2}, {2, 2}}; }

Range Features(Range heads, const ModelConfig& config) {
  return {heads.begin * config.head_dim, heads.end * config.head_dim};
}

TEST(DecoderWeightsTest, EachRankOfALlamaHasItsRowsAndColumns) {
  const ModelConfig config = LlamaConfig();
  TestModel model;
  AddLlama(config, "model.", model);
  const Range hidden = {0, config.hidden};
  for (const Mesh& mesh : Meshes()) {
    for (int rank = 0; rank < mesh.world_size(); ++rank) {
      SCOPED_TRACE(absl::StrCat("tp ", mesh.tp_size, ", pp ", mesh.pp_size, ", rank ", rank));
      const ShardPlan plan = PlanFor(config, mesh, rank);
      const DecoderWeights weights = LoadRank(model, config, mesh, rank).value();
      const Range q = Features(plan.heads(), config);
      const Range kv = Features(plan.kv_heads(), config);
      ASSERT_EQ(static_cast<int64_t>(weights.layers.size()), plan.layers().size());
      for (int64_t i = 0; i < plan.layers().size(); ++i) {
        const std::string prefix = absl::StrCat("model.layers.", plan.layers().begin + i, ".");
        const LayerWeights& layer = weights.layers[i];
        EXPECT_EQ(ValuesOf(layer.attention_norm.weight),
                  model.Whole(prefix + "input_layernorm.weight"));
        EXPECT_TRUE(layer.attention_norm.bias.empty());
        EXPECT_EQ(ValuesOf(layer.qkv.front().weight),
                  Join({model.Block(prefix + "self_attn.q_proj.weight", q, hidden),
                        model.Block(prefix + "self_attn.k_proj.weight", kv, hidden),
                        model.Block(prefix + "self_attn.v_proj.weight", kv, hidden)}));
        EXPECT_TRUE(layer.qkv.front().bias.empty());
        EXPECT_EQ(ValuesOf(layer.out.front().weight),
                  model.Block(prefix + "self_attn.o_proj.weight", hidden, q));
        EXPECT_EQ(ValuesOf(layer.mlp_norm.weight),
                  model.Whole(prefix + "post_attention_layernorm.weight"));
        EXPECT_EQ(ValuesOf(layer.up.front().weight),
                  Join({model.Block(prefix + "mlp.gate_proj.weight", plan.ffn(), hidden),
                        model.Block(prefix + "mlp.up_proj.weight", plan.ffn(), hidden)}));
        EXPECT_EQ(ValuesOf(layer.down.front().weight),
                  model.Block(prefix + "mlp.down_proj.weight", hidden, plan.ffn()));
      }
      const std::vector<float> none = {kAbsent};
      EXPECT_EQ(ValuesOf(weights.token_embedding),
                plan.first_stage() ? model.Block("model.embed_tokens.weight", plan.vocab(), hidden)
                                   : none);
      EXPECT_EQ(ValuesOf(weights.head),
                plan.last_stage() ? model.Block("lm_head.weight", plan.vocab(), hidden) : none);
      EXPECT_EQ(ValuesOf(weights.final_norm.weight),
                plan.last_stage() ? model.Whole("model.norm.weight") : none);
      EXPECT_TRUE(weights.position_embedding.empty());
    }
  }
}

TEST(DecoderWeightsTest, EachRankOfAnOptHasItsBiasesAndSumsHaveTheirsOnce) {
  const ModelConfig config = OptConfig();
  TestModel model;
  AddOpt(config, "model.decoder.", model);
  const Range hidden = {0, config.hidden};
  const Range embed = {0, config.embed_dim};
  const std::vector<float> none = {kAbsent};
  for (const Mesh& mesh : Meshes()) {
    for (int rank = 0; rank < mesh.world_size(); ++rank) {
      SCOPED_TRACE(absl::StrCat("tp ", mesh.tp_size, ", pp ", mesh.pp_size, ", rank ", rank));
      const ShardPlan plan = PlanFor(config, mesh, rank);
      const DecoderWeights weights = LoadRank(model, config, mesh, rank).value();
      const Range heads = Features(plan.heads(), config);
      for (int64_t i = 0; i < plan.layers().size(); ++i) {
        const std::string prefix =
            absl::StrCat("model.decoder.layers.", plan.layers().begin + i, ".");
        const std::string attention = prefix + "self_attn.";
        const LayerWeights& layer = weights.layers[i];
        EXPECT_EQ(ValuesOf(layer.qkv.front().weight),
                  Join({model.Block(attention + "q_proj.weight", heads, hidden),
                        model.Block(attention + "k_proj.weight", heads, hidden),
                        model.Block(attention + "v_proj.weight", heads, hidden)}));
        EXPECT_EQ(ValuesOf(layer.qkv.front().bias),
                  Join({model.Slice(attention + "q_proj.bias", heads),
                        model.Slice(attention + "k_proj.bias", heads),
                        model.Slice(attention + "v_proj.bias", heads)}));
        EXPECT_EQ(ValuesOf(layer.out.front().weight),
                  model.Block(attention + "out_proj.weight", hidden, heads));
        EXPECT_EQ(ValuesOf(layer.up.front().weight),
                  model.Block(prefix + "fc1.weight", plan.ffn(), hidden));
        EXPECT_EQ(ValuesOf(layer.up.front().bias), model.Slice(prefix + "fc1.bias", plan.ffn()));
        EXPECT_EQ(ValuesOf(layer.down.front().weight),
                  model.Block(prefix + "fc2.weight", hidden, plan.ffn()));
        const bool first = plan.tp_rank() == 0;
        EXPECT_EQ(ValuesOf(layer.out.front().bias),
                  first ? model.Whole(attention + "out_proj.bias") : none);
        EXPECT_EQ(ValuesOf(layer.down.front().bias),
                  first ? model.Whole(prefix + "fc2.bias") : none);
        EXPECT_EQ(ValuesOf(layer.attention_norm.bias),
                  model.Whole(prefix + "self_attn_layer_norm.bias"));
        EXPECT_EQ(ValuesOf(layer.mlp_norm.weight), model.Whole(prefix + "final_layer_norm.weight"));
      }
      const std::string decoder = "model.decoder.";
      // Tied: the last stage has the embedding as its head.
      EXPECT_EQ(ValuesOf(weights.token_embedding),
                plan.first_stage() || plan.last_stage()
                    ? model.Block(decoder + "embed_tokens.weight", plan.vocab(), embed)
                    : none);
      EXPECT_TRUE(weights.head.empty());
      EXPECT_EQ(ValuesOf(weights.position_embedding),
                plan.first_stage() ? model.Whole(decoder + "embed_positions.weight") : none);
      EXPECT_EQ(ValuesOf(weights.project_in.weight),
                plan.first_stage() ? model.Whole(decoder + "project_in.weight") : none);
      EXPECT_EQ(ValuesOf(weights.project_out.weight),
                plan.last_stage() ? model.Whole(decoder + "project_out.weight") : none);
      EXPECT_EQ(ValuesOf(weights.final_norm.bias),
                plan.last_stage() ? model.Whole(decoder + "final_layer_norm.bias") : none);
    }
  }
}

TEST(DecoderWeightsTest, SizesOfAllRanksAddUpToTheCheckpoint) {
  const ModelConfig config = LlamaConfig();
  TestModel model;
  AddLlama(config, "model.", model);
  const int64_t norm_bytes = config.hidden * 4;
  const int64_t norms_bytes = (2 * config.num_layers + 1) * norm_bytes;
  const int64_t kv_bytes =
      config.num_layers * 2 * config.num_kv_heads * config.head_dim * config.hidden * 4;
  for (const Mesh& mesh : Meshes()) {
    int64_t bytes = 0;
    for (int rank = 0; rank < mesh.world_size(); ++rank) {
      bytes += LoadRank(model, config, mesh, rank)->size_bytes();
    }
    // Norms are whole on every rank, and so are KV heads where there are more ranks than heads.
    const int64_t copies = std::max<int64_t>(mesh.tp_size / config.num_kv_heads, 1);
    EXPECT_EQ(bytes, model.Open().total_bytes() + (mesh.tp_size - 1) * norms_bytes +
                         (copies - 1) * kv_bytes)
        << "tp " << mesh.tp_size << ", pp " << mesh.pp_size;
  }
}

TEST(DecoderWeightsTest, NamesMayLackTheirPrefix) {
  for (const char* prefix : {"model.", ""}) {
    TestModel model;
    AddLlama(LlamaConfig(), prefix, model);
    EXPECT_TRUE(LoadRank(model, LlamaConfig(), Mesh(), 0).ok()) << prefix;
  }
  for (const char* prefix : {"model.decoder.", "decoder.", ""}) {
    TestModel model;
    AddOpt(OptConfig(), prefix, model);
    EXPECT_TRUE(LoadRank(model, OptConfig(), Mesh(), 0).ok()) << prefix;
  }
}

TEST(DecoderWeightsTest, MatricesKeepTheirDTypeAndVectorsBecomeFp32) {
  const ModelConfig config = LlamaConfig();
  TestModel model;
  AddLlama(config, "model.", model);
  const std::vector<std::pair<std::string, std::string>> stored = {
      {"model.layers.0.input_layernorm.weight", "BF16"},
      {"model.layers.0.self_attn.o_proj.weight", "F16"},
      {"model.embed_tokens.weight", "BF16"}};
  for (const auto& [name, dtype] : stored) {
    TestTensor& tensor = model.tensor(name);
    tensor.dtype = dtype;
    tensor.bytes.resize(tensor.bytes.size() / 2);
  }
  const DecoderWeights weights = LoadRank(model, config, Mesh(), 0).value();
  EXPECT_EQ(weights.layers[0].attention_norm.weight.view().dtype(), DType::kF32);
  EXPECT_EQ(weights.layers[0].out.front().weight.view().dtype(), DType::kF16);
  EXPECT_EQ(weights.layers[0].down.front().weight.view().dtype(), DType::kF32);
  EXPECT_EQ(weights.token_embedding.view().dtype(), DType::kBF16);
}

TEST(DecoderWeightsTest, ProgressCountsTheLayersOfTheStage) {
  const ModelConfig config = LlamaConfig();
  TestModel model;
  AddLlama(config, "model.", model);
  std::vector<std::pair<int64_t, int64_t>> told;
  const Mesh mesh = {.tp_size = 1, .pp_size = 2};
  ASSERT_TRUE(LoadDecoderWeights(model.Open(), config, PlanFor(config, mesh, 1),
                                 [&](int64_t loaded, int64_t all) {
                                   told.push_back({loaded, all});
                                 })
                  .ok());
  EXPECT_THAT(told, ElementsAre(Pair(1, 2), Pair(2, 2)));
}

TEST(DecoderWeightsTest, AMissingTensorIsNamed) {
  for (const char* name : {"model.layers.1.self_attn.k_proj.weight", "model.norm.weight",
                           "model.embed_tokens.weight", "lm_head.weight"}) {
    TestModel model;
    AddLlama(LlamaConfig(), "model.", model);
    model.Remove(name);
    const absl::Status status = LoadRank(model, LlamaConfig(), Mesh(), 0).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(model.Open().dir()));
    EXPECT_THAT(message, HasSubstr(name));
  }
}

TEST(DecoderWeightsTest, ARankDoesNotMissWhatIsNotItsOwn) {
  TestModel model;
  AddLlama(LlamaConfig(), "model.", model);
  model.Remove("lm_head.weight");
  const Mesh mesh = {.tp_size = 1, .pp_size = 2};
  EXPECT_TRUE(LoadRank(model, LlamaConfig(), mesh, 0).ok());
  EXPECT_FALSE(LoadRank(model, LlamaConfig(), mesh, 1).ok());
}

TEST(DecoderWeightsTest, AWrongShapeNamesFileTensorAndBothShapes) {
  for (const char* name :
       {"model.layers.1.self_attn.v_proj.weight", "model.layers.2.mlp.down_proj.weight"}) {
    TestModel model;
    AddLlama(LlamaConfig(), "model.", model);
    TestTensor& tensor = model.tensor(name);
    const std::string expected =
        absl::StrCat("expected shape [", tensor.shape[0], ", ", tensor.shape[1], "]");
    const std::string found = absl::StrCat("[", tensor.shape[0] / 2, ", ", tensor.shape[1], "]");
    tensor.shape[0] /= 2;
    tensor.bytes.resize(tensor.bytes.size() / 2);
    const absl::Status status = LoadRank(model, LlamaConfig(), Mesh(), 0).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr(model.file()));
    EXPECT_THAT(message, HasSubstr(name));
    EXPECT_THAT(message, HasSubstr(expected));
    EXPECT_THAT(message, HasSubstr(found));
  }
}

TEST(DecoderWeightsTest, AWrongDTypeNamesFileTensorAndDType) {
  // One that has a dtype of ours, and one that has none.
  for (const char* dtype : {"I32", "U32"}) {
    for (const char* name :
         {"model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
          "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight",
          "model.layers.1.mlp.down_proj.weight"}) {
      TestModel model;
      AddLlama(LlamaConfig(), "model.", model);
      model.tensor(name).dtype = dtype;
      const absl::Status status = LoadRank(model, LlamaConfig(), Mesh(), 0).status();
      EXPECT_FALSE(status.ok());
      const std::string message(status.message());
      EXPECT_THAT(message, HasSubstr(model.file()));
      EXPECT_THAT(message, HasSubstr(name));
      EXPECT_THAT(message, HasSubstr(dtype));
    }
  }
}

}  // namespace
}  // namespace thinwire
