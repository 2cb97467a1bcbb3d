#include "runtime/quant/grid_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

std::vector<float> Normals(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = normal(random);
  return values;
}

double PlainError(const std::vector<float>& x, const std::vector<float>& weights,
                  const UniformGrid& grid) {
  double sum = 0.0;
  for (size_t t = 0; t < x.size(); ++t) {
    const double position =
        static_cast<double>(x[t]) / static_cast<double>(grid.step) + static_cast<double>(grid.zero);
    const double code =
        std::nearbyint(std::clamp(position, 0.0, static_cast<double>((1 << grid.bits) - 1)));
    const double difference =
        static_cast<double>(x[t]) -
        static_cast<double>(grid.step) * (code - static_cast<double>(grid.zero));
    sum += (weights.empty() ? 1.0 : static_cast<double>(weights[t])) * difference * difference;
  }
  return sum;
}

TEST(UniformGridTest, RangesReachTheirEnds) {
  for (const int bits : {1, 3, 4, 8}) {
    const UniformGrid grid = GridOfRange(-1.5f, 4.0f, bits);
    // step and zero are fp32: 2^-24 of up to 255 steps of 5.5 / 255.
    EXPECT_NEAR(RoundToGrid(grid, -1.5f), -1.5f, 4e-6f);
    EXPECT_NEAR(RoundToGrid(grid, 4.0f), 4.0f, 4e-6f);
    EXPECT_NEAR(RoundToGrid(grid, -100.0f), -1.5f, 4e-6f);
    EXPECT_NEAR(RoundToGrid(grid, 100.0f), 4.0f, 4e-6f);
    EXPECT_NEAR(grid.Minimum(), -1.5f, 4e-6f);
  }
}

TEST(UniformGridTest, ConstantsAreExact) {
  for (const float value : {0.0f, 1.0f, -3.3f, 1e-20f, -65504.0f, 1e30f}) {
    for (const int bits : {1, 4, 8}) {
      const UniformGrid grid = GridOfRange(value, value, bits);
      EXPECT_GT(grid.step, 0.0f);
      EXPECT_TRUE(std::isfinite(1.0f / grid.step));
      EXPECT_EQ(RoundToGrid(grid, value), value);
      const std::vector<float> x(17, value);
      const auto fit = SearchGrid(x, {}, {.bits = bits});
      ASSERT_TRUE(fit.ok());
      EXPECT_EQ(fit->error, 0.0);
      EXPECT_EQ(RoundToGrid(fit->grid, value), value);
    }
  }
  EXPECT_EQ(RoundToGrid(GridOfRange(1e-40f, 1e-40f, 4), 1e-40f), 0.0f);
}

TEST(UniformGridTest, NarrowRangesFarFromZeroStayWithinASixteenthOfAStep) {
  const UniformGrid grid = GridOfRange(100.0f, 100.0001f, 8);
  for (float x = 100.0f; x <= 100.0001f; x = std::nextafter(x, 200.0f)) {
    EXPECT_NEAR(RoundToGrid(grid, x), x, 0.57f * grid.step);
  }
}

TEST(UniformGridTest, ErrorsEqualPlainSums) {
  const std::vector<float> x = Normals(1000, 1);
  std::vector<float> weights(1000);
  for (int t = 0; t < 1000; ++t) weights[t] = static_cast<float>(t % 5);
  const UniformGrid grid = GridOfRange(-1.5f, 2.0f, 3);
  for (const std::vector<float>& w : {std::vector<float>(), weights}) {
    const double expected = PlainError(x, w, grid);
    EXPECT_NEAR(GridError(x, w, grid), expected, 32 * 0x1p-24 * expected + 1e-5);
  }
  EXPECT_EQ(GridError({}, {}, grid), 0.0);
}

TEST(GridSearchTest, FindsAboutTheBestOfAFineScan) {
  const std::vector<float> x = Normals(400, 2);
  const std::vector<float> ones(400, 1.0f);
  for (const int bits : {2, 3, 4}) {
    double least = std::numeric_limits<double>::infinity();
    for (float step = 0.05f; step < 2.0f; step *= 1.01f) {
      for (float shift = -0.5f; shift < 0.5f; shift += 0.02f) {
        const float zero = 0.5f * static_cast<float>((1 << bits) - 1) + shift;
        least = std::min(least, PlainError(x, ones, {.step = step, .zero = zero, .bits = bits}));
      }
    }
    const auto fit = SearchGrid(x, ones, {.bits = bits, .two_sided = true});
    ASSERT_TRUE(fit.ok());
    EXPECT_LT(fit->error, 1.03 * least);
    EXPECT_NEAR(fit->error, PlainError(x, ones, fit->grid), 1e-4 * fit->error);
    const auto coarse = SearchGrid(x, ones, {.bits = bits, .refinements = 0});
    const auto range = SearchGrid(x, ones, {.bits = bits, .shrink_steps = 0, .refinements = 0});
    EXPECT_LE(fit->error, coarse->error);
    EXPECT_LE(coarse->error, range->error);
  }
}

TEST(GridSearchTest, WeightsDecideWhatIsClipped) {
  std::vector<float> x = Normals(300, 3);
  x[10] = 12.0f;
  std::vector<float> weights(300, 1.0f);
  const auto clipped = SearchGrid(x, weights, {.bits = 3});
  weights[10] = 1000.0f;
  const auto kept = SearchGrid(x, weights, {.bits = 3});
  EXPECT_LT(RoundToGrid(clipped->grid, 12.0f), 11.0f);
  EXPECT_NEAR(RoundToGrid(kept->grid, 12.0f), 12.0f, 0.5f);
  weights[10] = 0.0f;  // as if it were not there
  std::vector<float> without = x;
  without.erase(without.begin() + 10);
  EXPECT_EQ(SearchGrid(x, weights, {.bits = 3, .shrink_steps = 0, .refinements = 0})->grid.step,
            SearchGrid(without, {}, {.bits = 3, .shrink_steps = 0, .refinements = 0})->grid.step);
}

TEST(GridSearchTest, TwoValuesNeedOneBit) {
  const std::vector<float> x = {-2.5f, 7.0f, 7.0f, -2.5f, 7.0f};
  const auto fit = SearchGrid(x, {}, {.bits = 1});
  ASSERT_TRUE(fit.ok());
  EXPECT_NEAR(fit->error, 0.0, 1e-10);
}

TEST(GridSearchTest, NothingAndBadSamplesAreDefined) {
  const auto none = SearchGrid({}, {}, {.bits = 4});
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(RoundToGrid(none->grid, 0.0f), 0.0f);
  const std::vector<float> x = {1.0f, 2.0f};
  EXPECT_EQ(SearchGrid(x, {0.0f, 0.0f}, {.bits = 4})->error, 0.0);
  const float infinity = std::numeric_limits<float>::infinity();
  const auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_NE(message(SearchGrid({1.0f, infinity}, {}, {}).status()).find("sample 1"),
            std::string::npos);
  EXPECT_NE(message(SearchGrid(x, {1.0f, -1.0f}, {}).status()).find("weight of sample 1"),
            std::string::npos);
}

TEST(StepErrorsTest, AreThoseOfTheZerosFound) {
  const std::vector<float> x = Normals(500, 4);
  const std::vector<float> steps = GeometricSteps(0.05f, 1.0f, 12);
  EXPECT_EQ(steps.front(), 0.05f);
  EXPECT_EQ(steps.back(), 1.0f);
  EXPECT_NEAR(steps[6] / steps[5], steps[1] / steps[0], 1e-5f);
  const std::vector<double> errors = StepErrors(x, {}, 4, steps);
  for (size_t s = 0; s < steps.size(); ++s) {
    const GridFit fit = FitZero(x, {}, 4, steps[s]);
    EXPECT_EQ(fit.grid.step, steps[s]);
    EXPECT_EQ(fit.error, errors[s]);
    double least = std::numeric_limits<double>::infinity();
    for (float zero = 0.0f; zero < 16.0f; zero += 0.05f) {
      least = std::min(least, PlainError(x, {}, {.step = steps[s], .zero = zero, .bits = 4}));
    }
    EXPECT_LT(errors[s], 1.1 * least);
  }
  EXPECT_EQ(StepErrors({}, {}, 4, steps), std::vector<double>(12, 0.0));
}

TEST(PublishedGridTest, FollowsTheReleasedFormula) {
  for (const int bits : {3, 4, 8}) {
    for (const auto& [low, high] : {std::pair(-1.0f, 3.0f), std::pair(2.0f, 2.0f),
                                    std::pair(-1e6f, 1e6f), std::pair(5.0f, 5.001f)}) {
      const UniformGrid grid = PublishedGrid(low, high, bits);
      const float scale = std::clamp((high - low) * std::ldexp(1.0f, -bits), 1e-4f, 1e4f);
      const float zero = std::clamp(std::nearbyint(-(high + low) / (2.0f * scale)), -1e4f, 1e4f);
      EXPECT_EQ(grid.step, scale);
      const float half = std::ldexp(1.0f, bits - 1);
      for (const float x : {-3.0f, -0.77f, 0.0f, 1.31f, 2.9f, 5.0005f}) {
        const float code = std::clamp(std::nearbyint(x / scale) + zero, -half, half - 1.0f);
        EXPECT_NEAR(RoundToGrid(grid, x), (code - zero) * scale, 1.01f * 0x1p-20f * scale);
      }
    }
  }
}

TEST(EmaRangeTest, StartsAtTheFirstSampleAndForgetsSlowly) {
  EmaRange range;
  EXPECT_TRUE(range.empty());
  range.Add(-1.0f, 2.0f);
  EXPECT_EQ(range.minimum(), -1.0f);
  EXPECT_EQ(range.maximum(), 2.0f);
  for (int i = 0; i < 127; ++i) range.Add(-2.0f, 1.0f);
  const double kept = std::pow(0.99, 127);  // rounding: 127 * 2^-24
  EXPECT_NEAR(range.minimum(), -2.0 + kept, 2e-5);
  EXPECT_NEAR(range.maximum(), 1.0 + kept, 2e-5);
}

}  // namespace
}  // namespace thinwire
