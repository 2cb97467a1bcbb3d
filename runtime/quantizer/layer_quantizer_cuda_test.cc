// Layers that are calibrated and quantised on a GPU beside the same on the CPU.
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/copy.h"
#include "kernels/testing/gpu_test.h"
#include "kernels/testing/on_device.h"
#include "parallel/comm/local_communicator.h"
#include "runtime/quantizer/calibration_sums.h"
#include "runtime/quantizer/layer_quantizer.h"
#include "runtime/quantizer/reference_quantizer.h"
#include "runtime/quantizer/small_layer_testing.h"
#include "runtime/quantizer/vptq_survey.h"

namespace thinwire {
namespace {

constexpr int64_t kSeqlen = 48;
constexpr int64_t kWindows = 8;
constexpr uint64_t kStreamSeed = 2;

// A stream's windows [first, first + count) on the device of the pass.
ResidualStream WindowsOf(const ModelConfig& config, int64_t first, int64_t count, LayerPass& pass) {
  const ResidualStream all = RandomStream(config, kWindows, kSeqlen, kStreamSeed);
  ResidualStream part;
  part.num_windows = count;
  part.seqlen = kSeqlen;
  part.rows =
      Tensor::Allocate(DType::kF32, {count * kSeqlen, config.hidden}, pass.device()).value();
  EXPECT_TRUE(Copy(all.rows.view().Rows(first * kSeqlen, count * kSeqlen), part.rows.mutable_view(),
                   pass.stream())
                  .ok());
  EXPECT_TRUE(pass.stream().Synchronize().ok());
  return part;
}

double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double error = 0.0, size = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    size += double{b[i]} * b[i];
  }
  return std::sqrt(error / size);
}

void ExpectSame(const LayerResult& a, const LayerResult& b) {
  for (const LinearRole role : kLinearRoles) {
    EXPECT_EQ(a.weight(role).codes, b.weight(role).codes);
    EXPECT_EQ(a.weight(role).scales, b.weight(role).scales);
    EXPECT_EQ(a.vector(role).indices, b.vector(role).indices);
    EXPECT_EQ(a.bias(role), b.bias(role));
  }
  EXPECT_TRUE(a.codes == b.codes);
}

// One rank: on the pool, or on the GPU.
struct Rank {
  Rank(const ModelConfig& config, Communicator* world, Stream* gpu, int64_t first = 0,
       int64_t count = kWindows)
      : pool(2),
        pass(LayerPass::Create(config, kSeqlen, &pool, gpu).value()),
        windows(WindowsOf(config, first, count, *pass)),
        world(world),
        config(config),
        gpu(gpu) {}

  absl::StatusOr<LayerResult> Quantize(const DenseLayer& layer, const QuantScheme& scheme) {
    LayerQuantizer quantizer({.scheme = scheme, .group_size = 32, .num_windows = kWindows}, &config,
                             pass.get(), world, &pool, gpu);
    return quantizer.Quantize(layer, windows, windows);
  }

  ThreadPool pool;
  std::unique_ptr<LayerPass> pass;
  ResidualStream windows;
  Communicator* world;
  const ModelConfig& config;
  Stream* gpu;
};

class LayerQuantizerCudaTest : public GpuTest, public ::testing::WithParamInterface<ModelFamily> {
 protected:
  LayerQuantizerCudaTest()
      : config_(SmallConfig(GetParam())),
        world_(std::move(CreateLocalCommunicators(1)[0])),
        layer_(RandomLayer(config_, 1)) {}

  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    here_.emplace(config_, world_.get(), nullptr);
    there_.emplace(config_, world_.get(), &stream());
  }

  // What the layer adds to the residual, on the CPU.
  std::vector<float> Delta(const DenseLayer& layer, const SiteRoundings& roundings) {
    ResidualStream after = RandomStream(config_, kWindows, kSeqlen, kStreamSeed);
    EXPECT_TRUE(
        here_->pass->Advance(ToLayerWeights(layer, here_->pass->stream()).value(), roundings, after)
            .ok());
    std::vector<float> delta(after.rows.view().num_elements());
    for (size_t i = 0; i < delta.size(); ++i) {
      delta[i] = after.rows.view().data<float>()[i] - here_->windows.rows.view().data<float>()[i];
    }
    return delta;
  }

  double Error(LayerResult result) {
    for (const LinearRole role : kLinearRoles) {  // as they are read from a file
      if (!result.vector(role).indices.empty()) {
        result.read_vector(role) = Dequantize(result.vector(role));
      }
    }
    return RelativeError(Delta(Dequantized(result, layer_), SiteRoundings(result.codes, true)),
                         Delta(layer_, SiteRoundings()));
  }

  const ModelConfig config_;
  std::unique_ptr<Communicator> world_;
  const DenseLayer layer_;
  std::optional<Rank> here_, there_;
};

// Sums of some hundred products in another order, in fp32.
TEST_P(LayerQuantizerCudaTest, ActivationsAreTheCpus) {
  std::array<std::vector<float>, kQuantSites.size()> here, there;
  for (Rank* rank : {&*here_, &*there_}) {
    LayerPass& pass = *rank->pass;
    const LayerWeights weights = ToLayerWeights(layer_, pass.stream()).value();
    for (int64_t w = 0; w < 2; ++w) {
      ASSERT_TRUE(pass.Visit(weights, SiteRoundings(), rank->windows.window(w), QuantSite::kDownIn,
                             [&](QuantSite site, ConstTensorView x) {
                               const std::vector<float> rows = Values<float>(x, pass.stream());
                               auto& to =
                                   (rank == &*here_ ? here : there)[static_cast<size_t>(site)];
                               to.insert(to.end(), rows.begin(), rows.end());
                               return absl::OkStatus();
                             })
                      .ok());
    }
    ASSERT_TRUE(pass.Advance(weights, SiteRoundings(), rank->windows).ok());
  }
  for (const QuantSite site : kQuantSites) {
    const auto& mine = here[static_cast<size_t>(site)];
    ASSERT_EQ(mine.size(), there[static_cast<size_t>(site)].size());
    EXPECT_LT(RelativeError(there[static_cast<size_t>(site)], mine), 1e-5) << SiteName(site);
  }
  EXPECT_LT(RelativeError(Values<float>(there_->windows.rows.view(), stream()),
                          Values<float>(here_->windows.rows.view(), host())),
            1e-5);
}

TEST_P(LayerQuantizerCudaTest, SumsAreTheCpus) {
  std::vector<SecondMoments> moments;
  std::vector<AllSiteStats> stats;
  for (Rank* rank : {&*here_, &*there_}) {
    CalibrationSums sums(&config_, rank->pass.get(), world_.get(), kWindows);
    const LayerWeights weights = ToLayerWeights(layer_, rank->pass->stream()).value();
    SiteRoundings roundings;
    const LayerRun run = {&weights, &roundings, &rank->windows};
    moments.push_back(sums.Moments(QuantSite::kDownIn, run, &run).value());
    stats.push_back(sums.Stats(run, {{.site = QuantSite::kK, .sample_stride = 7, .first = 1},
                                     {.site = QuantSite::kMlpIn}})
                        .value());
  }
  EXPECT_EQ(moments[0].count(), moments[1].count());
  const std::vector<double> a = moments[0].Hessian(true), b = moments[1].Hessian(true);
  const std::vector<double> variance = moments[0].Variance(true);
  const int64_t width = moments[0].width();
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      ASSERT_NEAR(a[i * width + j], b[i * width + j], 1e-4 * std::sqrt(variance[i] * variance[j]));
    }
  }
  // The same stream twice: nothing is shifted.
  for (const double shift : moments[1].TargetShift(true)) ASSERT_EQ(shift, 0.0);
  for (const QuantSite site : {QuantSite::kK, QuantSite::kMlpIn}) {
    const ChannelStats &mine = *stats[0][static_cast<size_t>(site)],
                       &its = *stats[1][static_cast<size_t>(site)];
    EXPECT_EQ(mine.count(), its.count());
    ASSERT_EQ(mine.num_samples(), its.num_samples());
    for (int64_t c = 0; c < mine.width(); ++c) {
      const double deviation = std::sqrt(mine.mean_square(c));
      EXPECT_NEAR(mine.mean(c), its.mean(c), 1e-4 * deviation);
      EXPECT_NEAR(mine.variance(c), its.variance(c), 1e-4 * deviation * deviation);
      EXPECT_NEAR(mine.minimum(c), its.minimum(c), 1e-3 * deviation);
      EXPECT_NEAR(mine.maximum(c), its.maximum(c), 1e-3 * deviation);
      for (int64_t i = 0; i < mine.num_samples(); ++i) {
        EXPECT_NEAR(mine.SampleRow(i)[c], its.SampleRow(i)[c], 1e-3 * deviation);
      }
    }
  }
}

// Where values are as near to two codes, it may be another, so what they lose is compared.
TEST_P(LayerQuantizerCudaTest, LayersLoseWhatTheyDoOnTheCpu) {
  QuantScheme vectors;
  vectors.vptq = ParseVptqShape("vptq-v2-k64").value();
  for (const QuantScheme& scheme :
       {ParseScheme("w4a16").value(), ParseScheme("w4a8").value(), ParseScheme("w4a4").value(),
        ParseScheme("w4a4kv").value(), vectors}) {
    SCOPED_TRACE(SchemeName(scheme));
    const LayerResult mine = here_->Quantize(layer_, scheme).value();
    const LayerResult its = there_->Quantize(layer_, scheme).value();
    EXPECT_TRUE(CheckRptq({.tp = 0, .layers = {its.codes}}, config_, "result").ok());
    const double error = Error(mine);
    EXPECT_NEAR(Error(its), error, 0.1 * error);
    ExpectSame(there_->Quantize(layer_, scheme).value(), its);
  }
}

TEST_P(LayerQuantizerCudaTest, RanksThatShareTheWindowsMakeTheSame) {
  const QuantScheme scheme = ParseScheme("w4a4kv").value();
  const LayerResult alone = there_->Quantize(layer_, scheme).value();
  auto communicators = CreateLocalCommunicators(2);
  std::vector<std::optional<LayerResult>> results(2);
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r) {
    threads.emplace_back([&, r] {
      ThreadPool pool(1);
      Stream gpu = Stream::Cuda(Device::Cuda(0), &pool).value();
      Rank rank(config_, communicators[r].get(), &gpu, r * kWindows / 2, kWindows / 2);
      auto made = rank.Quantize(layer_, scheme);
      EXPECT_TRUE(made.ok()) << made.status();
      if (made.ok()) results[r] = *std::move(made);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) {
    ASSERT_TRUE(result.has_value());
    ExpectSame(*result, alone);
  }
}

TEST_P(LayerQuantizerCudaTest, ThePublishedAlgorithmRunsThere) {
  std::vector<LayerResult> results;
  for (Rank* rank : {&*here_, &*there_, &*there_}) {
    ReferenceQuantizer quantizer({.scheme = ParseScheme("w4a8").value(), .group_size = 32}, true, 0,
                                 &config_, rank->pass.get(), world_.get(), &rank->pool, rank->gpu);
    results.push_back(quantizer.Quantize(layer_, rank->windows).value());
  }
  ExpectSame(results[1], results[2]);
  const double error = Error(results[0]);
  EXPECT_NEAR(Error(results[1]), error, 0.1 * error);
}

TEST_P(LayerQuantizerCudaTest, SurveysAgree) {
  std::vector<SurveyedLayer> surveys;
  for (Rank* rank : {&*here_, &*there_, &*there_}) {
    VptqSurvey survey(&config_, rank->pass.get(), world_.get(), &rank->pool, kWindows, 0,
                      rank->gpu);
    surveys.push_back(survey.Survey(layer_, rank->windows, {.centibits = 300}).value());
  }
  for (size_t role = 0; role < kLinearRoles.size(); ++role) {
    const auto &mine = surveys[0].options[role], &its = surveys[1].options[role];
    ASSERT_EQ(mine.size(), its.size());
    for (size_t i = 0; i < mine.size(); ++i) {
      EXPECT_EQ(mine[i].bits, its[i].bits);
      EXPECT_NEAR(mine[i].loss, its[i].loss, 0.3 * mine[i].loss) << i;
      EXPECT_EQ(its[i].loss, surveys[2].options[role][i].loss);
    }
  }
}

TEST_P(LayerQuantizerCudaTest, ActivationsThatAreNoNumbersAreNamedBySite) {
  DenseLayer layer = layer_;
  layer.at(LinearRole::kUp).weight[5] = 3e38f;
  layer.at(LinearRole::kUp).weight[6] = 3e38f;
  for (const char* name : {"w4a16", "w4a8"}) {
    const absl::Status status = there_->Quantize(layer, ParseScheme(name).value()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("down_in"));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, LayerQuantizerCudaTest,
                         ::testing::Values(ModelFamily::kOpt, ModelFamily::kLlama),
                         [](const auto& info) { return std::string(FamilyName(info.param)); });

}  // namespace
}  // namespace thinwire
