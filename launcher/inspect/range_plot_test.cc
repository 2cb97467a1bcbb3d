#include "launcher/inspect/range_plot.h"

#include <numeric>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launcher/plot/gnuplot.h"

namespace thinwire {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

// One layer, two heads of 16: K has units of 4 and 2 bits, out_in no ranges, the rest nothing.
struct Model {
  Model() {
    config.hidden = 32;
    config.num_layers = 1;
    config.num_heads = config.num_kv_heads = 2;
    config.head_dim = 16;
    config.ffn = 64;
    quantisation.rptq = RptqFile();
    LayerCodes& layer = quantisation.rptq->layers.emplace_back();
    SiteCodes& k = layer.at(QuantSite::kK);
    k.order.resize(32);
    std::iota(k.order.begin(), k.order.end(), 0);
    k.offsets = {0, 16, 32};
    k.bits = {4, 2};
    k.step.assign(32, 0.5f);
    k.zero.assign(32, 1.0f);
    k.minimum.assign(32, -1.0f);
    k.maximum.assign(32, 2.0f);
    k.original_minimum.assign(32, -3.0f);
    k.original_maximum.assign(32, 4.0f);
    SiteCodes& out_in = layer.at(QuantSite::kOutIn);
    out_in.order = k.order;
    out_in.offsets = {0, 32};
    out_in.bits = {16};
  }

  absl::StatusOr<std::string> Script(const std::string& site, int64_t layer = 0) const {
    return RangePlotScript({.dir = "models/it's/",
                            .config = &config,
                            .quantisation = &quantisation,
                            .layer = layer,
                            .site = site});
  }

  void ExpectError(const std::string& site, int64_t layer, absl::StatusCode code,
                   const std::string& text) const {
    const absl::Status status = Script(site, layer).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }

  ModelConfig config;
  Quantisation quantisation;
};

TEST(RangePlotTest, TheScriptHasBothRangesAndWhatCodesReach) {
  const std::string script = Model().Script("").value();
  EXPECT_THAT(script,
              AllOf(HasSubstr("'it''s, layer 0, k'"), HasSubstr("\n31 -3 4\n32 -3 4\n"),
                    HasSubstr("\n0 -1 2\n1 -1 2\n"), HasSubstr("2 clusters, on average 3 bits")));
  // 0.5 (0 - 1) to 0.5 (15 - 1), and to 0.5 (3 - 1).
  EXPECT_THAT(script, AllOf(HasSubstr("\n0 -0.5 7\n"), HasSubstr("\n31 -0.5 1\n")));
  EXPECT_THAT(script, HasSubstr("set ylabel 'bits'"));
}

TEST(RangePlotTest, EqualBitsNeedNoStrip) {
  Model model;
  model.quantisation.rptq->layers[0].at(QuantSite::kK).bits = {4, 4};
  EXPECT_THAT(model.Script("k").value(),
              AllOf(HasSubstr("2 clusters, 4 bits"), Not(HasSubstr("set ylabel 'bits'"))));
}

TEST(RangePlotTest, WhatCannotBeDrawnIsSaid) {
  Model model;
  model.ExpectError("k", 1, absl::StatusCode::kOutOfRange, "--layer: expected 0 to 0, found 1");
  model.ExpectError("keys", 0, absl::StatusCode::kInvalidArgument,
                    "--site keys: expected one of qkv_in, q, k, v, out_in, mlp_in, down_in");
  model.ExpectError("out_in", 0, absl::StatusCode::kFailedPrecondition,
                    "rptq.safetensors: layers.0.out_in: has no range; quantise the model again");
  model.ExpectError("q", 0, absl::StatusCode::kFailedPrecondition,
                    "(the site is neither reordered nor coded)");
  model.quantisation.rptq->layers[0].at(QuantSite::kK).original_minimum.clear();
  model.ExpectError("", 0, absl::StatusCode::kFailedPrecondition, "layer 0 has no ranges to draw");
  model.quantisation.rptq.reset();
  model.ExpectError("", 0, absl::StatusCode::kFailedPrecondition, "has no rptq.safetensors");
}

TEST(RangePlotTest, GnuplotDrawsIt) {
  const absl::StatusOr<std::string> svg = RunGnuplot(Model().Script("k").value());
  if (svg.status().code() == absl::StatusCode::kFailedPrecondition) GTEST_SKIP() << svg.status();
  ASSERT_TRUE(svg.ok()) << svg.status();
  EXPECT_THAT(*svg,
              AllOf(HasSubstr("<svg"), HasSubstr("it's, layer 0, k"), EndsWith("</svg>\n\n")));
}

}  // namespace
}  // namespace thinwire
