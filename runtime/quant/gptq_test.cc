#include "runtime/quant/gptq.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/float16.h"
#include "runtime/quant/asymmetric_target.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/weight_grid.h"

namespace thinwire {
namespace {

std::vector<float> Normals(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = normal(random);
  return values;
}

// Of correlated channels, some of them large.
std::vector<double> RandomHessian(int64_t width, uint32_t seed) {
  const int64_t n = 2 * width;
  const std::vector<float> x = Normals(n * width, seed);
  const std::vector<float> common = Normals(n, seed + 1);
  std::vector<double> hessian(static_cast<size_t>(width * width), 0.0);
  const auto at = [&](int64_t t, int64_t c) {
    const double scale = c % 5 == 0 ? 8.0 : 1.0;
    return scale * (static_cast<double>(x[t * width + c]) + static_cast<double>(common[t]));
  };
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      for (int64_t t = 0; t < n; ++t) hessian[i * width + j] += at(t, i) * at(t, j);
    }
  }
  return hessian;
}

std::vector<double> Damped(std::vector<double> hessian, int64_t width) {
  DampHessian(Damping::kRelative, 0.01, width, absl::MakeSpan(hessian));
  return hessian;
}

std::vector<double> Factor(std::vector<double> damped, int64_t width) {
  EXPECT_TRUE(UpperFactorOfInverse(width, absl::MakeSpan(damped)).ok());
  return damped;
}

std::vector<int32_t> Groups(int64_t in, int64_t size) {
  std::vector<int32_t> offsets;
  for (int64_t i = 0; i < in; i += size) offsets.push_back(static_cast<int32_t>(i));
  offsets.push_back(static_cast<int32_t>(in));
  return offsets;
}

// GPTQ as the paper derives it: after each column, its error moves the ones left by the row of
// their own inverse Hessian, which then loses that column (equations 2 and 3). In double.
GptqCodes Reference(const std::vector<float>& weights, int64_t out, int64_t in,
                    const std::vector<double>& damped, const std::vector<int32_t>& groups,
                    const GptqOptions& options) {
  std::vector<double> inverse(static_cast<size_t>(in * in), 0.0);
  {
    const std::vector<double> u = Factor(damped, in);
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t j = 0; j < in; ++j) {
        for (int64_t k = 0; k < in; ++k) inverse[i * in + j] += u[k * in + i] * u[k * in + j];
      }
    }
  }
  GptqCodes codes{.out_features = out, .in_features = in, .bits = options.bits};
  codes.group_offsets = groups;
  codes.codes.resize(weights.size());
  codes.scales.resize(static_cast<size_t>(out * codes.num_groups()));
  codes.zeros.resize(codes.scales.size());
  std::vector<double> w(weights.begin(), weights.end());
  const WeightGridOptions grid_options{.bits = options.bits};
  const auto max_code = static_cast<float>((1 << options.bits) - 1);
  int64_t group = 0;
  for (int64_t j = 0; j < in; ++j) {
    while (j >= groups[group + 1]) ++group;
    for (int64_t row = 0; row < out; ++row) {
      const int64_t at = row * codes.num_groups() + group;
      if (j == groups[group]) {
        std::vector<float> columns;
        for (int64_t k = j; k < groups[group + 1]; ++k) {
          columns.push_back(options.static_groups ? weights[row * in + k]
                                                  : static_cast<float>(w[row * in + k]));
        }
        const WeightGrid grid = FitWeightGrid(columns.data(), nullptr,
                                              static_cast<int64_t>(columns.size()), grid_options);
        codes.scales[at] = grid.scale;
        codes.zeros[at] = static_cast<uint8_t>(grid.zero);
      }
      const WeightGrid grid{codes.scales[at], static_cast<float>(codes.zeros[at])};
      const float code = NearestCode(grid, static_cast<float>(w[row * in + j]), max_code);
      codes.codes[row * in + j] = static_cast<uint8_t>(code);
      const double error =
          (w[row * in + j] - static_cast<double>(grid.scale * (code - grid.zero))) /
          inverse[j * in + j];
      for (int64_t k = j; k < in; ++k) w[row * in + k] -= error * inverse[j * in + k];
    }
    const std::vector<double> lost(inverse.begin() + j * in, inverse.begin() + (j + 1) * in);
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t k = 0; k < in; ++k) inverse[i * in + k] -= lost[i] * lost[k] / lost[j];
    }
  }
  return codes;
}

void ExpectSame(const GptqCodes& a, const GptqCodes& b) {
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scales, b.scales);
  EXPECT_EQ(a.zeros, b.zeros);
}

double Error(const std::vector<float>& weights, const GptqCodes& codes,
             const std::vector<double>& hessian) {
  ThreadPool pool(1);
  return RelativeError(weights, codes, hessian, pool);
}

TEST(WeightGridTest, MinMaxReachesBothEndsAndKeepsZero) {
  const float w[] = {-1.0f, 0.5f, 2.0f, 0.0f};
  const WeightGrid grid = FitWeightGrid(w, nullptr, 4, {.bits = 4});
  EXPECT_EQ(grid.scale, ToFloat(ToHalf(3.0f / 15.0f)));
  EXPECT_EQ(grid.zero, 5.0f);
  EXPECT_EQ(NearestCode(grid, -1.0f, 15.0f), 0.0f);
  EXPECT_EQ(NearestCode(grid, 2.0f, 15.0f), 15.0f);
  EXPECT_EQ(NearestCode(grid, 0.0f, 15.0f), 5.0f);
  EXPECT_EQ(NearestCode(grid, 1e30f, 15.0f), 15.0f);
  EXPECT_EQ(NearestCode(grid, std::numeric_limits<float>::quiet_NaN(), 15.0f), 0.0f);
}

TEST(WeightGridTest, WeightsOfOneSignStillReachZero) {
  const float positive[] = {1.0f, 1.5f};
  EXPECT_EQ(FitWeightGrid(positive, nullptr, 2, {.bits = 4}).zero, 0.0f);
  const float negative[] = {-1.0f, -1.5f};
  EXPECT_EQ(FitWeightGrid(negative, nullptr, 2, {.bits = 4}).zero, 15.0f);
}

TEST(WeightGridTest, DegenerateRangesHaveAScale) {
  const float zeros[] = {0.0f, -0.0f};
  const WeightGrid none = FitWeightGrid(zeros, nullptr, 2, {.bits = 4, .shrink_steps = 10});
  EXPECT_EQ(none.scale, 1.0f);
  EXPECT_EQ(none.zero, 0.0f);
  const float tiny[] = {1e-20f, -1e-20f};
  EXPECT_EQ(FitWeightGrid(tiny, nullptr, 2, {.bits = 4}).scale, 0x1p-24f);
  const float huge[] = {3e38f, -3e38f};
  EXPECT_TRUE(std::isinf(FitWeightGrid(huge, nullptr, 2, {.bits = 4}).scale));
}

TEST(WeightGridTest, TheSearchFindsTheBestShrinkUnderItsWeights) {
  std::vector<float> w = Normals(61, 1);
  w[7] = 9.0f;  // an outlier worth clipping, unless its channel matters
  std::vector<float> h(61, 1.0f);
  for (const float weight : {1.0f, 1000.0f}) {
    h[7] = weight;
    for (const float power : {2.0f, 2.4f}) {
      const auto error_of = [&](const WeightGrid& grid) {
        double sum = 0.0;
        for (size_t i = 0; i < w.size(); ++i) {
          const float q = grid.scale * (NearestCode(grid, w[i], 15.0f) - grid.zero);
          sum += static_cast<double>(h[i]) *
                 std::pow(std::abs(static_cast<double>(w[i] - q)), static_cast<double>(power));
        }
        return sum;
      };
      double least = std::numeric_limits<double>::infinity();
      for (int j = 0; j <= 20; ++j) {
        std::vector<float> shrunk = w;
        const float factor = 1.0f - static_cast<float>(j) * (1.0f - 0.25f) / 20.0f;
        const auto [low, high] = std::minmax_element(w.begin(), w.end());
        const float ends[] = {factor * *low, factor * *high};
        least = std::min(least, error_of(FitWeightGrid(ends, nullptr, 2, {.bits = 4})));
      }
      const WeightGrid found = FitWeightGrid(
          w.data(), h.data(), 61,
          {.bits = 4, .shrink_steps = 20, .smallest_shrink = 0.25f, .error_power = power});
      EXPECT_NEAR(error_of(found), least, 1e-5 * least);  // sums in fp32: 61 * 2^-24
    }
  }
}

TEST(WeightGridTest, ShrinkingEachEndByItselfNeverHurtsAndOftenHelps) {
  const WeightGridOptions options{.bits = 3, .shrink_steps = 20};
  WeightGridOptions local = options;
  local.local_search = true;
  int better = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> w = Normals(64, seed);
    const auto error_of = [&](const WeightGrid& grid) {
      double sum = 0.0;
      for (const float value : w) {
        const float q = grid.scale * (NearestCode(grid, value, 7.0f) - grid.zero);
        sum += static_cast<double>((value - q) * (value - q));
      }
      return sum;
    };
    const double apart = error_of(FitWeightGrid(w.data(), nullptr, 64, local));
    const double together = error_of(FitWeightGrid(w.data(), nullptr, 64, options));
    EXPECT_LE(apart, together * (1.0 + 1e-5));  // sums in fp32: 64 * 2^-24
    if (apart < 0.999 * together) ++better;
  }
  EXPECT_GT(better, 4);
}

TEST(GptqTest, EqualsThePapersDerivation) {
  ThreadPool pool(2);
  struct Case {
    int64_t out, in, group;
    int bits;
    bool static_groups;
  };
  for (const Case& c :
       {Case{5, 40, 40, 4, false}, Case{70, 48, 16, 4, false}, Case{3, 50, 12, 3, true},
        Case{9, 300, 128, 4, false}, Case{2, 290, 1, 3, false}, Case{1, 1, 1, 4, false}}) {
    const std::vector<float> weights = Normals(c.out * c.in, 11);
    const std::vector<double> damped = Damped(RandomHessian(c.in, 12), c.in);
    const std::vector<int32_t> groups = Groups(c.in, c.group);
    const GptqOptions options{.bits = c.bits, .static_groups = c.static_groups};
    const std::vector<double> factor = Factor(damped, c.in);
    const auto result = Gptq({.out_features = c.out,
                              .in_features = c.in,
                              .weights = weights,
                              .hessian = damped,
                              .factor = factor,
                              .group_offsets = groups},
                             options, pool);
    ASSERT_TRUE(result.ok()) << result.status();
    // Codes could differ only where a weight lies within fp32 rounding of the middle between two.
    ExpectSame(result->codes, Reference(weights, c.out, c.in, damped, groups, options));
    EXPECT_EQ(result->relative_error, Error(weights, result->codes, damped));
  }
}

struct Problem {
  Problem(int64_t out, int64_t in, int64_t group)
      : out(out),
        in(in),
        weights(Normals(out * in, 21)),
        hessian(RandomHessian(in, 22)),
        factor(Factor(Damped(hessian, in), in)),
        groups(Groups(in, group)) {}

  GptqProblem View() const {
    return {.out_features = out,
            .in_features = in,
            .weights = weights,
            .hessian = hessian,
            .factor = factor,
            .group_offsets = groups};
  }

  int64_t out, in;
  std::vector<float> weights;
  std::vector<double> hessian, factor;
  std::vector<int32_t> groups;
};

TEST(GptqTest, EachRefinementLowersTheError) {
  const Problem problem(64, 128, 32);
  ThreadPool pool(2);
  GptqProblem nearest = problem.View();
  nearest.factor = {};
  GptqOptions options{.bits = 3};
  const double of_nearest = Gptq(nearest, options, pool)->relative_error;
  const double of_feedback = Gptq(problem.View(), options, pool)->relative_error;
  EXPECT_LT(of_feedback, 0.8 * of_nearest);
  options.shrink_steps = 40;
  options.search_weights = SearchWeights::kConditional;
  options.local_search = true;
  const double of_search = Gptq(problem.View(), options, pool)->relative_error;
  EXPECT_LT(of_search, of_feedback);
  double before = of_search;
  for (const int sweeps : {1, 2, 4}) {
    options.sweeps = sweeps;
    const double after = Gptq(problem.View(), options, pool)->relative_error;
    EXPECT_LE(after, before);
    before = after;
  }
  EXPECT_LT(before, of_search);
  options.refits = 1;
  const double of_refit = Gptq(problem.View(), options, pool)->relative_error;
  EXPECT_LT(of_refit, before);
}

TEST(GptqTest, SweepsEndWhereNoSingleCodeCanImprove) {
  const Problem problem(3, 150, 150);
  ThreadPool pool(1);
  const auto result = Gptq(problem.View(), {.bits = 3, .sweeps = 100}, pool);
  ASSERT_TRUE(result.ok());
  GptqCodes codes = result->codes;
  for (size_t i = 0; i < codes.codes.size(); ++i) {
    for (const int change : {-1, 1}) {
      const int code = codes.codes[i] + change;
      if (code < 0 || code > 7) continue;
      codes.codes[i] = static_cast<uint8_t>(code);
      // Ties and the fp32 rounding of E H: relative to the whole error.
      EXPECT_GE(Error(problem.weights, codes, problem.hessian),
                result->relative_error * (1.0 - 1e-5));
      codes.codes[i] = static_cast<uint8_t>(code - change);
    }
  }
}

TEST(GptqTest, ThreadsAndOtherRowsChangeNoBit) {
  const Problem problem(200, 160, 32);
  const GptqOptions options{
      .shrink_steps = 10, .search_weights = SearchWeights::kConditional, .sweeps = 2, .refits = 1};
  ThreadPool one(1);
  const GptqCodes expected = Gptq(problem.View(), options, one)->codes;
  for (const int num_threads : {2, 5}) {
    ThreadPool pool(num_threads);
    ExpectSame(Gptq(problem.View(), options, pool)->codes, expected);
  }
  GptqProblem block = problem.View();
  block.out_features = 64;
  block.weights = block.weights.subspan(64 * 160, 64 * 160);
  const GptqCodes alone = Gptq(block, options, one)->codes;
  EXPECT_TRUE(
      std::equal(alone.codes.begin(), alone.codes.end(), expected.codes.begin() + 64 * 160));
  EXPECT_TRUE(
      std::equal(alone.scales.begin(), alone.scales.end(), expected.scales.begin() + 64 * 5));
}

TEST(GptqTest, CodesZerosAndScalesAreInRange) {
  const Problem problem(30, 100, 16);
  ThreadPool pool(2);
  for (const int bits : {1, 3, 4, 8}) {
    const GptqCodes codes =
        Gptq(problem.View(), {.bits = bits, .shrink_steps = 5, .sweeps = 1}, pool)->codes;
    for (const uint8_t code : codes.codes) EXPECT_LT(code, 1 << bits);
    for (const uint8_t zero : codes.zeros) EXPECT_LT(zero, 1 << bits);
    for (const float scale : codes.scales) {
      EXPECT_GT(scale, 0.0f);
      EXPECT_EQ(ToFloat(ToHalf(scale)), scale);
    }
  }
}

TEST(GptqTest, DeadColumnsKeepTheirNearestCodes) {
  constexpr int64_t kOut = 6;
  constexpr int64_t kIn = 40;
  constexpr int64_t kDead = 23;
  const std::vector<float> weights = Normals(kOut * kIn, 31);
  std::vector<double> hessian = RandomHessian(kIn, 32);
  for (int64_t i = 0; i < kIn; ++i) {
    hessian[kDead * kIn + i] = 0.0;
    hessian[i * kIn + kDead] = 0.0;
  }
  const std::vector<double> factor = Factor(Damped(hessian, kIn), kIn);
  const std::vector<int32_t> groups = Groups(kIn, kIn);
  ThreadPool pool(1);
  const auto result = Gptq({.out_features = kOut,
                            .in_features = kIn,
                            .weights = weights,
                            .hessian = hessian,
                            .factor = factor,
                            .group_offsets = groups},
                           {.sweeps = 2}, pool);
  ASSERT_TRUE(result.ok());
  for (int64_t row = 0; row < kOut; ++row) {
    const WeightGrid grid{result->codes.scales[row], static_cast<float>(result->codes.zeros[row])};
    EXPECT_EQ(static_cast<float>(result->codes.codes[row * kIn + kDead]),
              NearestCode(grid, weights[row * kIn + kDead], 15.0f));
  }
}

TEST(GptqTest, WeightsOnTheGridAreKeptExactly) {
  constexpr int64_t kIn = 32;
  std::vector<float> weights(kIn);
  for (int64_t i = 0; i < kIn; ++i) weights[i] = 0.25f * static_cast<float>(i % 16 - 6);
  const std::vector<double> factor = Factor(Damped(RandomHessian(kIn, 41), kIn), kIn);
  const std::vector<int32_t> groups = {0, 16, 32};
  ThreadPool pool(1);
  const auto result = Gptq({.out_features = 1,
                            .in_features = kIn,
                            .weights = weights,
                            .factor = factor,
                            .group_offsets = groups},
                           {}, pool);
  EXPECT_EQ(Dequantize(result->codes), weights);
  EXPECT_EQ(result->relative_error, 0.0);
}

TEST(GptqTest, BadWeightsAreNamedAndEmptyOnesAreFine) {
  Problem problem(8, 20, 20);
  ThreadPool pool(2);
  problem.weights[3 * 20 + 5] = std::numeric_limits<float>::infinity();
  absl::Status status = Gptq(problem.View(), {}, pool).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("row 3, column 5"), absl::string_view::npos) << status;
  problem.weights[3 * 20 + 5] = 1e30f;
  status = Gptq(problem.View(), {}, pool).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("row 3, column 0"), absl::string_view::npos) << status;
  std::fill(problem.weights.begin(), problem.weights.end(), 0.0f);
  const auto zeros = Gptq(problem.View(), {.shrink_steps = 3, .sweeps = 1}, pool);
  ASSERT_TRUE(zeros.ok());
  EXPECT_EQ(zeros->relative_error, 0.0);
  EXPECT_EQ(Dequantize(zeros->codes), problem.weights);
  const std::vector<int32_t> no_groups = {0};
  EXPECT_TRUE(
      Gptq({.out_features = 4, .in_features = 0, .group_offsets = no_groups}, {}, pool).ok());
  const std::vector<int32_t> one_group = {0, 3};
  EXPECT_TRUE(
      Gptq({.out_features = 0, .in_features = 3, .group_offsets = one_group}, {}, pool).ok());
}

TEST(GptqCodesTest, BiasCorrectionRestoresTheMeanOutput) {
  const Problem problem(10, 24, 24);
  ThreadPool pool(1);
  const GptqCodes codes = Gptq(problem.View(), {.bits = 3}, pool)->codes;
  std::vector<double> mean(24);
  for (int64_t i = 0; i < 24; ++i) mean[i] = static_cast<double>(i) - 10.0;
  const std::vector<float> correction = BiasCorrection(problem.weights, codes, mean);
  const std::vector<float> coded = Dequantize(codes);
  for (int64_t row = 0; row < 10; ++row) {
    double expected = 0.0;
    double found = static_cast<double>(correction[row]);
    for (int64_t i = 0; i < 24; ++i) {
      expected += static_cast<double>(problem.weights[row * 24 + i]) * mean[i];
      found += static_cast<double>(coded[row * 24 + i]) * mean[i];
    }
    EXPECT_NEAR(found, expected, 1e-5);  // the fp32 rounding of a correction below 100
  }
}

TEST(AsymmetricTargetTest, SolvesTheNormalEquations) {
  constexpr int64_t kOut = 70;
  constexpr int64_t kIn = 30;
  const std::vector<float> weights = Normals(kOut * kIn, 51);
  const std::vector<double> damped = Damped(RandomHessian(kIn, 52), kIn);
  const std::vector<float> random = Normals(kIn * kIn, 53);
  const std::vector<double> shift(random.begin(), random.end());
  ThreadPool pool(2);
  for (const double strength : {0.0, 0.5, 1.0}) {
    const std::vector<float> target =
        AsymmetricTarget(kOut, kIn, weights, shift, Factor(damped, kIn), strength, pool);
    // (W' - W) H = strength W C; rounding W' to fp32 costs 2^-24 of |W'| |H|.
    for (int64_t row = 0; row < kOut; ++row) {
      for (int64_t j = 0; j < kIn; ++j) {
        double left = 0.0;
        double right = 0.0;
        double size = 0.0;
        for (int64_t i = 0; i < kIn; ++i) {
          const auto w = static_cast<double>(weights[row * kIn + i]);
          const auto moved = static_cast<double>(target[row * kIn + i]);
          left += (moved - w) * damped[i * kIn + j];
          right += strength * w * shift[i * kIn + j];
          size += (std::abs(moved) + std::abs(w)) * std::abs(damped[i * kIn + j]);
        }
        EXPECT_NEAR(left, right, 0x1p-23 * size + 1e-9);
      }
    }
  }
}

}  // namespace
}  // namespace thinwire
