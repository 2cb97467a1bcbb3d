// How much memory a rank needs to load its part of a model. A program of its own, because it is
// skipped as a whole where memory cannot be measured.
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/model/decoder_weights.h"
#include "tests/support/peak_memory.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

// Layers as wide as those of a model of 1 B parameters.
ModelConfig Config() {
  ModelConfig config;
  config.family = ModelFamily::kLlama;
  config.architecture = "LlamaForCausalLM";
  config.vocab = 4096;
  config.hidden = 2048;
  config.embed_dim = 2048;
  config.num_layers = 2;
  config.num_heads = 32;
  config.num_kv_heads = 8;
  config.head_dim = 64;
  config.ffn = 5632;
  config.max_positions = 1024;
  return config;
}

// Writes a header and, as a hole in the file, data of zeros.
class SparseCheckpoint {
 public:
  explicit SparseCheckpoint(const ModelConfig& config) {
    const int64_t hidden = config.hidden;
    const int64_t q = config.num_heads * config.head_dim;
    const int64_t kv = config.num_kv_heads * config.head_dim;
    Add("model.embed_tokens", {config.vocab, hidden});
    for (int64_t i = 0; i < config.num_layers; ++i) {
      const std::string layer = absl::StrCat("model.layers.", i, ".");
      Add(layer + "input_layernorm", {hidden});
      Add(layer + "self_attn.q_proj", {q, hidden});
      Add(layer + "self_attn.k_proj", {kv, hidden});
      Add(layer + "self_attn.v_proj", {kv, hidden});
      Add(layer + "self_attn.o_proj", {hidden, q});
      Add(layer + "post_attention_layernorm", {hidden});
      Add(layer + "mlp.gate_proj", {config.ffn, hidden});
      Add(layer + "mlp.up_proj", {config.ffn, hidden});
      Add(layer + "mlp.down_proj", {hidden, config.ffn});
    }
    Add("model.norm", {hidden});
    Add("lm_head", {config.vocab, hidden});
    const std::string bytes = SafetensorsBytes(absl::StrCat("{", header_, "}"), "");
    const std::string path = folder_.Write("model.safetensors", bytes);
    std::filesystem::resize_file(path, bytes.size() + data_bytes_);
  }

  const std::string& dir() const { return folder_.path(); }
  int64_t data_bytes() const { return data_bytes_; }

 private:
  void Add(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t bytes = 2;
    for (const int64_t dim : shape) bytes *= dim;
    absl::StrAppend(&header_, header_.empty() ? "" : ",", "\"", name,
                    ".weight\":{\"dtype\":\"F16\",\"shape\":[", shape[0],
                    shape.size() == 2 ? absl::StrCat(",", shape[1]) : "", "],\"data_offsets\":[",
                    data_bytes_, ",", data_bytes_ + bytes, "]}");
    data_bytes_ += bytes;
  }

  TestFolder folder_;
  std::string header_;
  int64_t data_bytes_ = 0;
};

TEST(DecoderMemoryTest, ARankNeedsLittleMoreThanItsPartOfTheModel) {
  const ModelConfig config = Config();
  const SparseCheckpoint checkpoint(config);
  const char* unmeasurable = WhyMemoryIsNotMeasurable();
  for (const Mesh mesh : {Mesh{2, 1}, Mesh{1, 2}}) {
    SCOPED_TRACE(absl::StrCat("tp ", mesh.tp_size, ", pp ", mesh.pp_size));
    const PeakMemory measured = MeasurePeakMemory([&]() -> int64_t {
      const absl::StatusOr<Checkpoint> opened = Checkpoint::Open(checkpoint.dir());
      if (!opened.ok()) return -1;
      const absl::StatusOr<ShardPlan> plan = ShardPlan::Create({.num_layers = config.num_layers,
                                                                .num_heads = config.num_heads,
                                                                .num_kv_heads = config.num_kv_heads,
                                                                .ffn = config.ffn,
                                                                .vocab = config.vocab},
                                                               mesh, 1);
      if (!plan.ok()) return -1;
      const absl::StatusOr<DecoderWeights> weights = LoadDecoderWeights(*opened, config, *plan);
      return weights.ok() ? weights->size_bytes() : -1;
    });
    // Half of the model; norms, a few KB, are held twice as precisely and on every rank.
    ASSERT_GE(measured.result, checkpoint.data_bytes() / 2);
    ASSERT_LE(measured.result, checkpoint.data_bytes() / 2 + 100'000);
    if (unmeasurable != nullptr) continue;
    const double ratio =
        static_cast<double>(measured.growth_bytes) / static_cast<double>(measured.result);
    std::printf("checkpoint %.1f MB, shard %.1f MB, peak growth %.1f MB, ratio %.3f\n",
                checkpoint.data_bytes() / 1e6, measured.result / 1e6, measured.growth_bytes / 1e6,
                ratio);
    EXPECT_GE(ratio, 0.99);  // else the measurement is blind
    EXPECT_LE(ratio, 1.10);
  }
  if (unmeasurable != nullptr) GTEST_SKIP() << unmeasurable;
}

}  // namespace
}  // namespace thinwire
