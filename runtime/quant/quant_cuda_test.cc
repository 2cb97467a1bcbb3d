// What runtime/quant does on a GPU beside what it does on the CPU.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/quantize/gpu_gptq.h"
#include "kernels/testing/gpu_test.h"
#include "runtime/quant/asymmetric_target.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/gptq.h"
#include "runtime/quant/second_moments.h"
#include "runtime/quant/vptq.h"

namespace thinwire {
namespace {

class QuantCudaTest : public GpuTest {
 protected:
  std::vector<float> Normals(int64_t size) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values) value = normal(random_);
    return values;
  }

  // Of correlated channels.
  std::vector<double> Hessian(int64_t width) {
    std::vector<float> x = Normals(3 * width * width);
    for (int64_t t = 0; t < 3 * width; ++t) {
      for (int64_t c = 1; c < width; ++c) x[t * width + c] += 0.6f * x[t * width + c - 1];
    }
    SecondMoments moments(width, false);
    EXPECT_TRUE(moments.Add(x.data(), width, nullptr, 0, 3 * width, pool_).ok());
    return moments.Hessian(false);
  }

  std::vector<double> Factor(const std::vector<double>& hessian, int64_t width) {
    std::vector<double> factor = hessian;
    DampHessian(Damping::kRelative, 0.01, width, absl::MakeSpan(factor));
    EXPECT_TRUE(UpperFactorOfInverse(width, absl::MakeSpan(factor)).ok());
    return factor;
  }

  ThreadPool pool_{2};
  std::mt19937 random_{std::random_device{}()};
};

TEST_F(QuantCudaTest, FactorsAgree) {
  for (const int64_t width : {1, 33, 150}) {
    const std::vector<double> hessian = Hessian(width);
    const std::vector<double> here = Factor(hessian, width);
    std::vector<double> there = hessian;
    DampHessian(Damping::kRelative, 0.01, width, absl::MakeSpan(there));
    ASSERT_TRUE(UpperFactorOfInverse(width, absl::MakeSpan(there), &stream()).ok());
    // The condition is below 1e4.
    for (size_t i = 0; i < here.size(); ++i) ASSERT_NEAR(here[i], there[i], 1e-9) << i;
  }
}

TEST_F(QuantCudaTest, TargetsAgree) {
  for (const auto& [out, in] : {std::pair<int64_t, int64_t>{1, 1}, {70, 33}, {5000, 20}}) {
    const std::vector<float> weights = Normals(out * in);
    const std::vector<float> shifts = Normals(in * in);
    const std::vector<double> shift(shifts.begin(), shifts.end());
    const std::vector<double> factor = Factor(Hessian(in), in);
    const std::vector<float> here = AsymmetricTarget(out, in, weights, shift, factor, 0.7, pool_);
    const auto there = AsymmetricTarget(out, in, weights, shift, factor, 0.7, pool_, &stream());
    ASSERT_TRUE(there.ok()) << there.status();
    for (size_t i = 0; i < here.size(); ++i) {
      // One rounding of what is the same to 1e-9 of terms below 1e3.
      ASSERT_NEAR(here[i], (*there)[i], 0x1p-23 * std::fabs(here[i]) + 1e-6) << i;
    }
  }
}

// With scales fixed and no feedback no sum is left: codes are equal but where the division rounds
// onto a boundary, which it does alike. With feedback and sweeps errors agree on the whole.
TEST_F(QuantCudaTest, GptqIsAsGoodThereAsHere) {
  struct Case {
    int64_t out, in, group;
    GptqOptions options;
    bool factor;
  };
  const Case cases[] = {
      {7, 33, 8, {.bits = 4}, false},
      {65, 300, 64, {.bits = 4, .static_groups = true}, true},
      {130, 257, 257, {.bits = 3, .shrink_steps = 10, .error_power = 2.4f}, true},
      {100,
       400,
       32,
       {.bits = 4, .shrink_steps = 20, .local_search = true, .sweeps = 3, .refits = 1},
       true},
      {33, 140, 128, {.bits = 8, .sweeps = 1}, true},
  };
  for (Case c : cases) {
    SCOPED_TRACE(absl::StrCat(c.out, " x ", c.in, " in ", c.group));
    c.options.search_weights =
        c.options.shrink_steps > 0 ? SearchWeights::kConditional : SearchWeights::kEqual;
    const std::vector<float> weights = Normals(c.out * c.in);
    const std::vector<double> hessian = Hessian(c.in);
    const std::vector<double> factor = c.factor ? Factor(hessian, c.in) : std::vector<double>();
    std::vector<int32_t> groups;
    for (int64_t g = 0; g < c.in; g += c.group) groups.push_back(static_cast<int32_t>(g));
    groups.push_back(static_cast<int32_t>(c.in));
    const GptqProblem problem = {.out_features = c.out,
                                 .in_features = c.in,
                                 .weights = weights,
                                 .hessian = hessian,
                                 .factor = factor,
                                 .group_offsets = groups};
    const auto here = Gptq(problem, c.options, pool_);
    const auto there = Gptq(problem, c.options, pool_, &stream());
    const auto again = Gptq(problem, c.options, pool_, &stream());
    ASSERT_TRUE(here.ok() && there.ok() && again.ok()) << there.status() << again.status();
    EXPECT_EQ(there->codes.codes, again->codes.codes);
    EXPECT_EQ(there->codes.scales, again->codes.scales);
    // What it reports is the error of what it returns.
    const double error = RelativeError(weights, there->codes, hessian, pool_);
    EXPECT_NEAR(there->relative_error, error, 1e-9 * error);
    int64_t equal = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      equal += here->codes.codes[i] == there->codes.codes[i] ? 1 : 0;
    }
    if (!c.factor) {
      EXPECT_EQ(equal, static_cast<int64_t>(weights.size()));
      EXPECT_EQ(here->codes.scales, there->codes.scales);
      EXPECT_EQ(here->codes.zeros, there->codes.zeros);
    } else {
      // Rows are independent; one in which a code fell otherwise goes its own way, no worse on
      // average.
      EXPECT_GE(static_cast<double>(equal), 0.9 * static_cast<double>(weights.size()));
      EXPECT_NEAR(there->relative_error, here->relative_error, 0.02 * here->relative_error);
    }
  }
}

// k-means and feedback go their own ways after the first tie: what is lost must not.
TEST_F(QuantCudaTest, SystemsOfSomeRowsAreThoseAmongAll) {
  constexpr int64_t kOut = 37, kIn = 52;
  const std::vector<int32_t> groups = {0, 16, 20, 52};
  const auto num_groups = static_cast<int64_t>(groups.size()) - 1;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> weights(kOut * kIn);
  for (float& weight : weights) weight = normal(random);
  // Integers, so that sums with codes of 4 bits are exact in any order.
  std::vector<double> hessian(kIn * kIn);
  for (int64_t i = 0; i < kIn; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      hessian[i * kIn + j] = hessian[j * kIn + i] = static_cast<double>(random() % 9);
    }
  }
  absl::StatusOr<GpuGptq> work = GpuGptq::Create(kOut, kIn, 4, groups, weights, {}, stream());
  ASSERT_TRUE(work.ok()) << work.status();
  ASSERT_TRUE(work->SetHessian(hessian).ok());
  ASSERT_TRUE(work->FeedForward({{{0, kIn}}}, true, {}).ok());
  ASSERT_TRUE(work->Slopes().ok());
  std::vector<double> systems, slopes;
  ASSERT_TRUE(work->Systems(0, kOut, systems, slopes).ok());
  ASSERT_EQ(static_cast<int64_t>(slopes.size()), kOut * num_groups);
  for (const int64_t rows : {1, 10, 37}) {
    std::vector<double> some, all_systems, all_slopes, some_slopes;
    for (int64_t first = 0; first < kOut; first += rows) {
      const int64_t count = std::min(rows, kOut - first);
      ASSERT_TRUE(work->Systems(first, count, some, some_slopes).ok());
      all_systems.insert(all_systems.end(), some.begin(), some.end());
      all_slopes.insert(all_slopes.end(), some_slopes.begin(), some_slopes.end());
    }
    EXPECT_EQ(all_systems, systems);
    EXPECT_EQ(all_slopes, slopes);
  }
}

TEST_F(QuantCudaTest, VectorsLoseNoMoreThereThanHere) {
  struct Case {
    int64_t out, in;
    VptqOptions options;
  };
  const Case cases[] = {
      {96, 130, {.length = 8, .index_bits = 7}},
      {300, 129, {.length = 4, .index_bits = 6, .residual = true, .residual_bits = 4}},
      {100, 64, {.length = 6, .index_bits = 5, .recipe = VptqRecipe::kPublished}},
      {200, 65, {.length = 4, .index_bits = 6, .byte_books = true}},
      {128, 96, {.length = 4, .index_bits = 5, .num_groups = 2}},
      {128, 96, {.length = 8, .index_bits = 5, .norm = false}},
      {160, 70, {.length = 20, .index_bits = 4}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StrCat(c.out, " x ", c.in, " in vectors of ", c.options.length));
    const std::vector<float> weights = Normals(c.out * c.in);
    const std::vector<double> hessian = Hessian(c.in);
    const VptqProblem problem = {
        .out_features = c.out, .in_features = c.in, .weights = weights, .hessian = hessian};
    const auto here = Vptq(problem, c.options, pool_);
    const auto there = Vptq(problem, c.options, pool_, nullptr, &stream());
    const auto again = Vptq(problem, c.options, pool_, nullptr, &stream());
    ASSERT_TRUE(here.ok() && there.ok() && again.ok()) << there.status();
    EXPECT_EQ(there->codes.indices, again->codes.indices);
    EXPECT_EQ(there->codes.residuals, again->codes.residuals);
    EXPECT_EQ(there->codes.centroids, again->codes.centroids);
    EXPECT_NEAR(there->relative_error, here->relative_error, 0.05 * here->relative_error);
    // What it reports is the error of what it returns.
    const std::vector<float> values = Dequantize(there->codes);
    double error = 0.0, whole = 0.0;
    for (int64_t o = 0; o < c.out; ++o) {
      for (int64_t i = 0; i < c.in; ++i) {
        for (int64_t j = 0; j < c.in; ++j) {
          const double h = hessian[i * c.in + j];
          const double w = weights[o * c.in + i], v = weights[o * c.in + j];
          error += h * (values[o * c.in + i] - w) * (values[o * c.in + j] - v);
          whole += h * w * v;
        }
      }
    }
    EXPECT_NEAR(there->relative_error, error / whole, 1e-3 * error / whole);
  }
}

TEST_F(QuantCudaTest, WeightsBeyondScalesAreNamedThereToo) {
  std::vector<float> weights(3 * 4, 1.0f);
  weights[1 * 4 + 2] = 3e38f;
  const std::vector<int32_t> groups = {0, 4};
  const auto result =
      Gptq({.out_features = 3, .in_features = 4, .weights = weights, .group_offsets = groups}, {},
           pool_, &stream());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(result.status().message().find("weight row 1, column 0"), absl::string_view::npos)
      << result.status();
}

}  // namespace
}  // namespace thinwire
