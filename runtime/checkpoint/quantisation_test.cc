#include "runtime/checkpoint/quantisation.h"

#include <numeric>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/safetensors_writer.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// 2 layers, 4 heads of 32, two of them for K and V.
ModelConfig SmallConfig() {
  ModelConfig config;
  config.hidden = 16;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.ffn = 8;
  return config;
}

// Clusters of 16 channels (the whole site where it is smaller); their bits in turn.
SiteCodes Site(int64_t width, std::vector<uint8_t> bits) {
  SiteCodes codes;
  codes.order.resize(width);
  std::iota(codes.order.begin(), codes.order.end(), 0);
  codes.offsets = {0};
  for (int64_t begin = 0; begin < width; begin += 16) {
    codes.offsets.push_back(static_cast<int32_t>(std::min(begin + 16, width)));
    codes.bits.push_back(bits[static_cast<size_t>(begin / 16) % bits.size()]);
  }
  if (bits.front() < 16) {
    codes.step.assign(width, 0.5f);
    codes.zero.assign(width, 3.0f);
  }
  return codes;
}

// Dense weights, K and V of 4 bits.
struct Folder {
  Folder() {
    made.scheme = {.weight_bits = 16, .act_bits = 16, .kv_bits = 4};
    made.tool_version = "0.1.0";
    rptq.layers.resize(2);
    for (LayerCodes& layer : rptq.layers) {
      layer.at(QuantSite::kK) = Site(64, {4});
      layer.at(QuantSite::kV) = Site(64, {4});
    }
  }

  absl::StatusOr<Quantisation> Read() const {
    EXPECT_TRUE(WriteThinwireFile(folder.path(), made).ok());
    EXPECT_TRUE(WriteRptqFile(folder.path(), rptq, config).ok());
    return ReadQuantisation(folder.path(), config);
  }

  void ExpectContradiction(const std::string& text) const {
    const absl::Status status = Read().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(folder.Path(kThinwireFileName) + ": "), HasSubstr(text)));
  }

  TestFolder folder;
  ModelConfig config = SmallConfig();
  ThinwireFile made;
  RptqFile rptq;
};

TEST(QuantisationTest, AFolderOfOthersHasNone) {
  const TestFolder folder;
  ModelConfig config = SmallConfig();
  const Quantisation none = ReadQuantisation(folder.path(), config).value();
  EXPECT_FALSE(none.made.has_value() || none.rptq.has_value());
  EXPECT_EQ(none.layer(1), nullptr);
  EXPECT_EQ(SchemeOf(config, none), "w16a16");
  config.gptq = GptqConfig{.bits = 3};
  EXPECT_EQ(SchemeOf(config, none), "gptq3");
}

TEST(QuantisationTest, BothFilesAreReadAndNamed) {
  Folder folder;
  const Quantisation read = folder.Read().value();
  EXPECT_EQ(*read.made, folder.made);
  EXPECT_EQ(*read.layer(1), folder.rptq.layers[1]);
  EXPECT_EQ(SchemeOf(folder.config, read), "w16a16kv4");
}

TEST(QuantisationTest, OneFileWithoutTheOtherIsAnError) {
  for (const bool has_made : {true, false}) {
    Folder folder;
    const absl::Status written =
        has_made ? WriteThinwireFile(folder.folder.path(), folder.made)
                 : WriteRptqFile(folder.folder.path(), folder.rptq, folder.config);
    ASSERT_TRUE(written.ok());
    const absl::Status status = ReadQuantisation(folder.folder.path(), folder.config).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(kThinwireFileName), HasSubstr(kRptqFileName)));
  }
}

TEST(QuantisationTest, TheSchemeMustBeWhatTheSitesAre) {
  {
    Folder folder;
    folder.rptq.layers[1].at(QuantSite::kV) = SiteCodes();
    folder.ExpectContradiction("scheme w16a16kv4 has activations of 4 bits at v, but " +
                               folder.folder.Path(kRptqFileName) + " does not code layers.1.v");
  }
  {
    Folder folder;
    folder.made.scheme.act_bits = 8;
    folder.ExpectContradiction("activations of 8 bits at qkv_in, but " +
                               folder.folder.Path(kRptqFileName) +
                               " does not code layers.0.qkv_in");
  }
  {
    Folder folder;
    folder.rptq.layers[0].at(QuantSite::kMlpIn) = Site(16, {8});
    folder.ExpectContradiction("activations of 16 bits at mlp_in, but " +
                               folder.folder.Path(kRptqFileName) + " codes layers.0.mlp_in");
  }
  {
    Folder folder;  // Order alone contradicts nothing.
    folder.rptq.layers[0].at(QuantSite::kMlpIn) = Site(16, {16});
    EXPECT_TRUE(folder.Read().ok());
  }
}

TEST(QuantisationTest, WeightsMustBeWhatTheConfigSays) {
  Folder folder;
  folder.made.scheme.weight_bits = 4;
  folder.ExpectContradiction("has weights of 4 bits, but " + folder.folder.path() +
                             "/config.json says nothing of a quantisation");
  folder.config.gptq = GptqConfig{.bits = 3};
  folder.ExpectContradiction("/config.json says 3 in quantization_config");
}

TEST(QuantisationTest, BothFilesMustBeForTheSameCuts) {
  Folder folder;
  folder.made.tp = 4;
  folder.rptq.tp = 2;
  folder.ExpectContradiction("tp 4, but " + folder.folder.Path(kRptqFileName) +
                             " was ordered for 2");
}

TEST(KvFootprintTest, RowsOfALayerAreAsLongAsTheWidest) {
  Folder folder;
  // Heads of 6 and 4 bits on average, then of 4 and 2.
  folder.rptq.layers[0].at(QuantSite::kK) = Site(64, {8, 4, 5, 3});
  folder.rptq.layers[0].at(QuantSite::kV) = Site(64, {5, 3, 3, 1});
  const Quantisation read = folder.Read().value();
  const KvFootprint all = KvFootprintOf(folder.config, read, {0, 2});
  EXPECT_TRUE(all.coded);
  EXPECT_EQ(all.layers[0].k_bits, 5.0);
  EXPECT_EQ(all.layers[0].v_bits, 3.0);
  EXPECT_EQ(all.layers[0].bytes_per_token, 2 * (32 * 6 / 8 + 32 * 4 / 8));
  EXPECT_EQ(all.layers[1].bytes_per_token, 2 * (32 * 4 / 8 + 32 * 4 / 8));
  EXPECT_EQ(all.bytes_per_token(), 80 + 64);
  EXPECT_EQ(all.k_bits(), 4.5);
  EXPECT_EQ(all.v_bits(), 3.5);
  EXPECT_EQ(all.first_token_bytes, 2 * 2 * 2 * 32 * 2);
  const KvFootprint second = KvFootprintOf(folder.config, read, {1, 2});
  EXPECT_EQ(second.layers[0].bytes_per_token, 32 * 4 / 8 + 32 * 2 / 8);
  EXPECT_EQ(second.first_token_bytes, 2 * 2 * 32 * 2);
}

TEST(KvFootprintTest, WithoutCodesItIsThatOfFp16) {
  const KvFootprint kv = KvFootprintOf(SmallConfig(), Quantisation(), {0, 2});
  EXPECT_FALSE(kv.coded);
  EXPECT_EQ(kv.k_bits(), 16.0);
  EXPECT_EQ(kv.bytes_per_token(), 2 * 2 * 2 * 32 * 2);
  EXPECT_EQ(kv.first_token_bytes, 0);
}

}  // namespace
}  // namespace thinwire
