#include "kernels/vptq_linear/vptq_linear.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/convert/convert.h"
#include "kernels/testing/cpu_targets.h"
#include "kernels/vptq_linear/random_vptq.h"
#include "kernels/vptq_linear/vptq_linear_cpu.h"

namespace thinwire {
namespace {

using ::testing::HasSubstr;

using Way = absl::Status (*)(const VptqLinearArgs&, Stream&);

struct Case {
  int64_t num_tokens, out;
  std::vector<RandomVptqPart> parts;
  bool ordered = false;
  bool scaled = true;
  DType dtype = DType::kF32;
};

// Half an ulp, relative.
double UnitRoundoffOf(DType dtype) {
  return dtype == DType::kF16 ? 0x1p-11 : dtype == DType::kBF16 ? 0x1p-8 : 0x1p-24;
}

void RunWay(Way way, const VptqLinearArgs& args, int threads) {
  ThreadPool pool(threads);
  Stream stream = Stream::Cpu(&pool);
  ASSERT_TRUE(way(args, stream).ok());
}

std::vector<float> Floats(const ConstTensorView& rows, int64_t n) {
  std::vector<float> floats(static_cast<size_t>(rows.dim(0) * n));
  for (int64_t t = 0; t < rows.dim(0); ++t) {
    ConvertToFloat(rows.Rows(t, 1).raw(), rows.dtype(), floats.data() + t * n, n);
  }
  return floats;
}

void ExpectMatchesReference(const Case& c, Way way, int threads) {
  std::mt19937 random(static_cast<uint32_t>(c.num_tokens * 31 + c.out));
  const VptqWeights weights = RandomVptq(c.out, c.parts, c.ordered, c.scaled, random);
  const int64_t in = weights.in_features();
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> raw(static_cast<size_t>(c.num_tokens * in)), bias(static_cast<size_t>(c.out));
  for (float& value : raw) value = normal(random);
  for (float& value : bias) value = normal(random);
  Tensor x = Tensor::Allocate(c.dtype, {c.num_tokens, in}, Device::Cpu()).value();
  ConvertFromFloat(raw.data(), x.mutable_view().mutable_raw(), c.dtype, c.num_tokens * in);
  const std::vector<float> rounded = Floats(x.view(), in);
  const int64_t stride = c.out + 3;
  Tensor y = Tensor::Allocate(c.dtype, {c.num_tokens, stride}, Device::Cpu()).value();
  const std::vector<float> nan(static_cast<size_t>(c.num_tokens * stride),
                               std::numeric_limits<float>::quiet_NaN());
  ConvertFromFloat(nan.data(), y.mutable_view().mutable_raw(), c.dtype, c.num_tokens * stride);
  const VptqLinearArgs args = {.x = x.view(),
                               .weights = &weights,
                               .bias = ConstTensorView(bias.data(), DType::kF32, {c.out}),
                               .y = y.mutable_view().Columns(0, c.out)};
  RunWay(way, args, threads);
  const std::vector<float> found = Floats(y.view(), stride);
  ASSERT_TRUE(VptqLinearReference(args).ok());
  const std::vector<float> wanted = Floats(y.view(), stride);
  // |C| + |R| of a weight, before the scale: w's own rounding is relative to them.
  constexpr double kLargest = 12.0;
  for (int64_t t = 0; t < c.num_tokens; ++t) {
    double magnitude = 1.0;
    for (int64_t p = 0; p < in; ++p) {
      const int64_t column = weights.order().empty() ? p : weights.order()[p];
      const double scale = weights.scale().empty() ? 1.0 : std::fabs(weights.scale()[p]);
      const double offset = weights.offset().empty() ? 0.0 : std::fabs(weights.offset()[p]);
      magnitude += std::fabs(rounded[t * in + column]) * (scale * kLargest + offset);
    }
    for (int64_t o = 0; o < stride; ++o) {
      const double value = found[t * stride + o];
      if (o >= c.out) {
        ASSERT_TRUE(std::isnan(value)) << "gap of y overwritten at " << t << ", " << o;
        continue;
      }
      // At most in + 8 roundings in a chain, on either side.
      const double error = 1.001 * 0x1p-24 * static_cast<double>(in + 8) * magnitude;
      const double want = wanted[t * stride + o];
      ASSERT_NEAR(value, want,
                  error + 2 * UnitRoundoffOf(c.dtype) * (std::fabs(want) + error) + 0x1p-24)
          << "token " << t << ", output " << o;
    }
  }
}

std::vector<Case> Cases() {
  return {
      {1, 16, {{.group_columns = {40}}}},
      {3, 37, {{.length = 6, .skip = 5, .index_bits = 12, .group_columns = {33}}}},
      {5,
       50,
       {{.length = 4, .skip = 1, .index_bits = 5, .group_columns = {3}, .dtype = DType::kBF16},
        {.length = 12,
         .skip = 7,
         .index_bits = 7,
         .residual_bits = 5,
         .residual = true,
         .group_columns = {11, 0, 18},
         .dtype = DType::kBF16}},
       true,
       true,
       DType::kF16},
      {7,
       64,
       {{.length = 16,
         .index_bits = 16,
         .residual_bits = 16,
         .residual = true,
         .group_columns = {21},
         .dtype = DType::kF32}},
       false,
       false,
       DType::kBF16},
      {20, 9, {{.length = 2, .index_bits = 3, .group_columns = {64, 64}}}, true, true},
      {33,
       130,
       {{.length = 8, .skip = 3, .residual_bits = 0, .residual = true, .group_columns = {65}}},
       true,
       true,
       DType::kF16},
      {2, 5, {{.length = 1, .index_bits = 0, .group_columns = {7}}}, false, false},
  };
}

TEST(VptqLinearTest, AwkwardShapesMatchTheReference) {
  ForEachCpuTarget([](absl::string_view target) {
    for (const Case& c : Cases()) {
      SCOPED_TRACE(testing::Message()
                   << std::string(target) << ", " << c.num_tokens << " x " << c.out);
      ExpectMatchesReference(c, VptqLinearFewTokens, 2);
      ExpectMatchesReference(c, VptqLinearManyTokens, 2);
      ExpectMatchesReference(c, VptqLinear, 1);
    }
  });
}

TEST(VptqLinearTest, ATokensRowIsTheSameBitsBesideOthersAndForPartsOfTheOutputs) {
  std::mt19937 random(5);
  const std::vector<RandomVptqPart> parts = {
      {.length = 4, .index_bits = 6, .group_columns = {5}},
      {.length = 8, .index_bits = 9, .residual_bits = 4, .residual = true, .group_columns = {90}}};
  const VptqWeights weights = RandomVptq(48, parts, true, true, random);
  std::vector<float> x(11 * 95), all(11 * 48), one(48);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (float& value : x) value = normal(random);
  RunWay(VptqLinear,
         {.x = ConstTensorView(x.data(), DType::kF32, {11, 95}),
          .weights = &weights,
          .y = TensorView(all.data(), DType::kF32, {11, 48})},
         2);
  for (int64_t t = 0; t < 11; ++t) {
    RunWay(VptqLinear,
           {.x = ConstTensorView(x.data() + t * 95, DType::kF32, {1, 95}),
            .weights = &weights,
            .y = TensorView(one.data(), DType::kF32, {1, 48}),
            .batch_invariant = true},
           1);
    EXPECT_EQ(one, std::vector<float>(all.begin() + t * 48, all.begin() + (t + 1) * 48)) << t;
  }
}

TEST(VptqWeightsTest, WrongPartsAreNamed) {
  std::mt19937 random(6);
  const auto message = [&](auto change, std::vector<int32_t> order = {}) {
    std::vector<VptqPart> parts;
    parts.push_back(RandomPart({.group_columns = {4}}, 16, random));
    change(parts[0]);
    return std::string(
        VptqWeights::Create(16, std::move(parts), std::move(order), {}, {}).status().message());
  };
  EXPECT_THAT(message([](VptqPart& part) { part.length = 17; }), HasSubstr("found 17"));
  EXPECT_THAT(message([](VptqPart& part) { part.skip = 8; }), HasSubstr("skip 8"));
  EXPECT_THAT(message([](VptqPart& part) { part.index_bits = 9; }), HasSubstr("2^9"));
  EXPECT_THAT(message([](VptqPart& part) { part.groups[0].num_columns = 40; }),
              HasSubstr("expected codes uint8[88]"));
  EXPECT_THAT(message([](VptqPart&) {}, {0, 1, 1, 3}), HasSubstr("found 1 twice"));
  EXPECT_THAT(message([](VptqPart&) {}, {0, 1}), HasSubstr("4 columns, found 2"));
}

TEST(VptqWeightsTest, TakesTheBitsOfItsCodesAndItsBooks) {
  std::mt19937 random(7);
  const VptqWeights weights = RandomVptq(
      64, {{.length = 8, .index_bits = 12, .group_columns = {256}}}, false, true, random);
  EXPECT_EQ(weights.size_bytes(),
            64 / 8 * 256 * 12 / 8 + kVptqCodeSlack + 4096 * 8 * 2 + 2 * 256 * 4);
}

}  // namespace
}  // namespace thinwire
