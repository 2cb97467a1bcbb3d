#include "runtime/quantizer/layer_quantizer.h"

#include <cmath>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "parallel/comm/local_communicator.h"
#include "runtime/checkpoint/safetensors_writer.h"
#include "runtime/checkpoint/vptq_tensors.h"
#include "runtime/quantizer/folds.h"
#include "runtime/quantizer/reference_quantizer.h"
#include "runtime/quantizer/small_layer_testing.h"
#include "runtime/quantizer/vptq_writer.h"

namespace thinwire {
namespace {

constexpr int64_t kSeqlen = 48;
constexpr int64_t kWindows = 6;

class LayerQuantizerTest : public ::testing::TestWithParam<ModelFamily> {
 protected:
  LayerQuantizerTest()
      : config_(SmallConfig(GetParam())),
        pool_(2),
        pass_(LayerPass::Create(config_, kSeqlen, &pool_).value()),
        world_(std::move(CreateLocalCommunicators(1)[0])),
        layer_(RandomLayer(config_, 1)),
        stream_(RandomStream(config_, kWindows, kSeqlen, 2)) {}

  // What the layer adds to the residual.
  std::vector<float> Delta(const DenseLayer& layer, const SiteRoundings& roundings) {
    ResidualStream after = RandomStream(config_, kWindows, kSeqlen, 2);
    EXPECT_TRUE(
        pass_->Advance(ToLayerWeights(layer, pass_->stream()).value(), roundings, after).ok());
    std::vector<float> delta(after.rows.view().num_elements());
    for (size_t i = 0; i < delta.size(); ++i) {
      delta[i] = after.rows.view().data<float>()[i] - stream_.rows.view().data<float>()[i];
    }
    return delta;
  }

  static double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
    double error = 0.0, size = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
      error += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
      size += double{b[i]} * b[i];
    }
    return std::sqrt(error / size);
  }

  absl::StatusOr<LayerResult> Quantize(const QuantScheme& scheme, int64_t group_size = 32) {
    LayerQuantizer quantizer({.scheme = scheme, .group_size = group_size}, &config_, pass_.get(),
                             world_.get(), &pool_);
    return quantizer.Quantize(layer_, stream_, stream_);
  }

  const ModelConfig config_;
  ThreadPool pool_;
  std::unique_ptr<LayerPass> pass_;
  std::unique_ptr<Communicator> world_;
  DenseLayer layer_;
  ResidualStream stream_;
};

TEST_P(LayerQuantizerTest, FoldsLeaveTheFunctionAsItIs) {
  for (const int step_bits : {16, 4}) {
    std::array<std::optional<ChannelStats>, kQuantSites.size()> stats;
    for (const QuantSite site : kQuantSites) {
      stats[static_cast<size_t>(site)].emplace(SiteWidth(config_, site), 1);
    }
    const LayerWeights weights = ToLayerWeights(layer_, pass_->stream()).value();
    for (int64_t w = 0; w < kWindows; ++w) {
      ASSERT_TRUE(pass_
                      ->Visit(weights, SiteRoundings(), stream_.window(w), QuantSite::kDownIn,
                              [&](QuantSite site, ConstTensorView x) {
                                return stats[static_cast<size_t>(site)]->Add(x);
                              })
                      .ok());
    }
    const auto of = [&](QuantSite site) { return &*stats[static_cast<size_t>(site)]; };
    DenseLayer folded = layer_;
    FoldLayer(config_,
              {.qkv_in = of(QuantSite::kQkvIn),
               .v = of(QuantSite::kV),
               .out_in = of(QuantSite::kOutIn),
               .mlp_in = of(QuantSite::kMlpIn),
               .down_in = of(QuantSite::kDownIn),
               .step_bits = step_bits},
              folded, pool_);
    EXPECT_NE(folded.attention_norm.gain, layer_.attention_norm.gain);
    // Products of a fold and its inverse round a few times in fp32, and sums of some hundred terms
    // that cancel carry it on.
    EXPECT_LT(RelativeError(Delta(folded, SiteRoundings()), Delta(layer_, SiteRoundings())), 1e-5);
  }
}

TEST_P(LayerQuantizerTest, MoreBitsLoseLess) {
  const std::vector<float> exact = Delta(layer_, SiteRoundings());
  double last = 0.0;
  for (const char* name : {"w16a8", "w4a8", "w4a4"}) {
    const LayerResult result = Quantize(ParseScheme(name).value()).value();
    const double error =
        RelativeError(Delta(Dequantized(result, layer_), SiteRoundings(result.codes, true)), exact);
    EXPECT_GT(error, last) << name;
    EXPECT_LT(error, 0.5) << name;
    last = error;
  }
}

TEST_P(LayerQuantizerTest, KvCodesKeepTheirBudgetInEveryHead) {
  for (const int bits : {4, 3}) {
    const LayerResult result = Quantize({.kv_bits = bits}).value();
    EXPECT_FALSE(result.quantises_weights());
    const double total =
        MeanBits(result.codes.at(QuantSite::kK)) + MeanBits(result.codes.at(QuantSite::kV));
    EXPECT_LE(total, 2.0 * bits);
    EXPECT_TRUE(CheckRptq({.tp = 0, .layers = {result.codes}}, config_, "result").ok());
  }
}

TEST_P(LayerQuantizerTest, TheSameEveryTime) {
  const QuantScheme scheme = ParseScheme("w4a4").value();
  const LayerResult first = Quantize(scheme).value();
  const LayerResult second = Quantize(scheme).value();
  for (const LinearRole role : kLinearRoles) {
    EXPECT_EQ(first.weight(role).codes, second.weight(role).codes);
    EXPECT_EQ(first.weight(role).scales, second.weight(role).scales);
    EXPECT_EQ(first.bias(role), second.bias(role));
  }
  EXPECT_EQ(first.codes, second.codes);
}

TEST_P(LayerQuantizerTest, ActivationsThatAreNoNumbersAreNamedBySite) {
  layer_.at(LinearRole::kUp).weight[5] = 3e38f;
  layer_.at(LinearRole::kUp).weight[6] = 3e38f;
  for (const char* name : {"w4a16", "w4a8"}) {
    const absl::Status status = Quantize(ParseScheme(name).value()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("down_in"));
  }
}

TEST_P(LayerQuantizerTest, TheReferenceCodesEverySite) {
  double errors[2];
  for (const bool clustered : {false, true}) {
    ReferenceQuantizer quantizer({.scheme = ParseScheme("w4a8").value(), .group_size = 32},
                                 clustered, 0, &config_, pass_.get(), world_.get(), &pool_);
    const LayerResult result = quantizer.Quantize(layer_, stream_).value();
    ASSERT_TRUE(CheckRptq({.tp = 0, .layers = {result.codes}}, config_, "result").ok());
    for (const QuantSite site : kQuantSites) EXPECT_TRUE(result.codes.at(site).coded());
    errors[clustered] =
        RelativeError(Delta(Dequantized(result, layer_), SiteRoundings(result.codes, false)),
                      Delta(layer_, SiteRoundings()));
  }
  // With gates, averaged ranges cut the long tails of small clusters more than those of all.
  if (GetParam() == ModelFamily::kOpt) {
    EXPECT_LT(errors[true], errors[false]);
  }
  EXPECT_LT(errors[true], 0.7);
}

// What calibration goes on with, and what a run will see.
TEST(VptqWriterTest, VectorsAreReadBackAsTheyStand) {
  constexpr int64_t kOut = 70, kIn = 50;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> weights(kOut * kIn);
  for (float& weight : weights) weight = normal(random);
  std::vector<double> hessian(kIn * kIn, 0.0);
  for (int64_t i = 0; i < kIn; ++i) hessian[i * kIn + i] = 1.0 + static_cast<double>(i % 7);
  ThreadPool pool(2);
  for (const char* name : {"vptq-v6-k16-r4-g4-o7v4k128", "vptq-v3-k8", "vptq-v4-k16-o2v2k4-raw"}) {
    const VptqCodes codes =
        Vptq({kOut, kIn, weights, hessian}, VptqOptionsOf(ParseVptqShape(name).value()), pool)
            .value()
            .codes;
    const std::string path = ::testing::TempDir() + "/vectors.safetensors";
    const VptqLayerConfig config = VptqConfigOf(codes);
    auto writer = SafetensorsWriter::Create(path, VptqTensorSpecs("m", config)).value();
    ASSERT_TRUE(AppendVptqLinear(writer, "m", codes).ok());
    ASSERT_TRUE(writer.Commit().ok());
    const Checkpoint read = Checkpoint::OpenFile(path).value();
    const VptqLinear linear = VptqLinear::Open(&read, "m", kOut, kIn, config).value();
    const VptqWeights found = linear.ReadBlock({0, kOut}, {0, kIn}).value();
    std::vector<float> values(weights.size());
    for (int64_t o = 0; o < kOut; ++o) {
      found.DequantizeRow(o, absl::MakeSpan(values).subspan(o * kIn, kIn));
    }
    EXPECT_EQ(values, Dequantize(codes)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, LayerQuantizerTest,
                         ::testing::Values(ModelFamily::kOpt, ModelFamily::kLlama),
                         [](const auto& info) { return std::string(FamilyName(info.param)); });

}  // namespace
}  // namespace thinwire
