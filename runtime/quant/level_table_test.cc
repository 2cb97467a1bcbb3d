#include "runtime/quant/level_table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

constexpr UniformGrid kFine = {.step = 0.125f, .zero = 40.25f, .bits = 8};

std::vector<float> Normals(int64_t size, uint32_t seed, float deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = normal(random);
  return values;
}

// What the run time makes of samples with a table.
double Error(const std::vector<float>& x, const std::vector<float>& weights,
             const std::array<uint8_t, 256>& snap) {
  double sum = 0.0;
  for (size_t t = 0; t < x.size(); ++t) {
    const auto position = static_cast<double>(x[t] / kFine.step + kFine.zero);
    const auto code = static_cast<size_t>(std::nearbyint(std::clamp(position, 0.0, 255.0)));
    const double difference =
        static_cast<double>(x[t]) -
        static_cast<double>(kFine.step) * (snap[code] - static_cast<double>(kFine.zero));
    sum += static_cast<double>(weights[t]) * difference * difference;
  }
  return sum;
}

TEST(SnapTableTest, GoesToTheNearestLowerOfEquals) {
  const std::vector<uint8_t> levels = {10, 14, 15, 200};
  const std::array<uint8_t, 256> snap = SnapTable(levels);
  for (int code = 0; code < 256; ++code) {
    const uint8_t* nearest = &levels[0];
    for (const uint8_t& level : levels) {
      if (std::abs(code - level) < std::abs(code - *nearest)) nearest = &level;
    }
    EXPECT_EQ(snap[code], *nearest) << code;
  }
  EXPECT_EQ(snap[12], 10);
}

TEST(LevelTableTest, EqualsTheBestOfAllPairs) {
  const std::vector<float> x = Normals(300, 1, 6.0f);
  const std::vector<float> weights(300, 2.0f);
  const auto found = OptimalLevels(x, weights, kFine, 2);
  ASSERT_TRUE(found.ok());
  double least = std::numeric_limits<double>::infinity();
  for (int a = 0; a < 256; ++a) {
    for (int b = a + 1; b < 256; ++b) {
      const std::vector<uint8_t> pair = {static_cast<uint8_t>(a), static_cast<uint8_t>(b)};
      least = std::min(least, Error(x, weights, SnapTable(pair)));
    }
  }
  // Positions are rounded to fp32 here: 300 samples of |x| < 30, each 2^-24 * 300 codes off.
  EXPECT_NEAR(found->error, least, 1e-4 * least);
  EXPECT_NEAR(Error(x, weights, found->snap), least, 1e-4 * least);
}

TEST(LevelTableTest, EqualsTheBestOfAllTriples) {
  std::vector<float> x = Normals(200, 2, 0.5f);
  for (float& value : x) value = std::clamp(value - 3.5f, -5.0f, -1.5f);  // codes 0 .. 28
  std::vector<float> weights(200);
  for (int t = 0; t < 200; ++t) weights[t] = static_cast<float>(t % 7);
  const auto found = OptimalLevels(x, weights, kFine, 3);
  ASSERT_TRUE(found.ok());
  double least = std::numeric_limits<double>::infinity();
  for (int a = 0; a < 32; ++a) {
    for (int b = a + 1; b < 32; ++b) {
      for (int c = b + 1; c < 32; ++c) {
        const std::vector<uint8_t> triple = {static_cast<uint8_t>(a), static_cast<uint8_t>(b),
                                             static_cast<uint8_t>(c)};
        least = std::min(least, Error(x, weights, SnapTable(triple)));
      }
    }
  }
  EXPECT_NEAR(found->error, least, 1e-4 * least);
}

TEST(LevelTableTest, SixteenLevelsBeatSixteenEvenOnes) {
  const std::vector<float> x = Normals(5000, 3, 2.0f);
  const std::vector<float> weights(5000, 1.0f);
  const auto found = OptimalLevels(x, {}, {.step = 0.0625f, .zero = 128.0f, .bits = 8}, 16);
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->levels.size(), 16u);
  EXPECT_TRUE(std::is_sorted(found->levels.begin(), found->levels.end()));
  EXPECT_EQ(std::adjacent_find(found->levels.begin(), found->levels.end()), found->levels.end());
  const auto even = SearchGrid(x, {}, {.bits = 4});
  ASSERT_TRUE(even.ok());
  EXPECT_LT(found->error, even->error);
}

TEST(LevelTableTest, AllLevelsLeaveOnlyTheFineGridsError) {
  const std::vector<float> x = Normals(500, 4, 3.0f);
  const auto found = OptimalLevels(x, {}, kFine, 256);
  ASSERT_TRUE(found.ok());
  for (int code = 0; code < 256; ++code) EXPECT_EQ(found->snap[code], code);
  const double expected = GridError(x, {}, kFine);
  EXPECT_NEAR(found->error, expected, 1e-4 * expected);
}

TEST(LevelTableTest, MergedHistogramsEqualOneOfAllSamples) {
  const std::vector<float> a = Normals(100, 5, 3.0f);
  const std::vector<float> b = Normals(100, 6, 9.0f);
  const UniformGrid coarse{.step = 0.5f, .zero = 100.0f, .bits = 8};
  CodeHistogram whole;
  ASSERT_TRUE(whole.Add(a, {}, kFine).ok());
  ASSERT_TRUE(whole.Add(b, {}, coarse).ok());
  CodeHistogram first;
  CodeHistogram second;
  ASSERT_TRUE(first.Add(a, {}, kFine).ok());
  ASSERT_TRUE(second.Add(b, {}, coarse).ok());
  first.Merge(second);
  EXPECT_EQ(first.OptimalLevels(8).levels, whole.OptimalLevels(8).levels);
}

TEST(LevelTableTest, NoSamplesGiveEvenLevelsAndBadOnesAreNamed) {
  const LevelTable even = CodeHistogram().OptimalLevels(16);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(even.levels[i], 17 * i);
  EXPECT_EQ(even.error, 0.0);
  EXPECT_EQ(CodeHistogram().OptimalLevels(1).levels, std::vector<uint8_t>{128});
  const std::vector<float> x = {1.0f, std::numeric_limits<float>::quiet_NaN()};
  const absl::Status status = OptimalLevels(x, {}, kFine, 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("sample 1"), absl::string_view::npos) << status;
  const std::vector<float> constant(50, 3.0f);
  const auto one = OptimalLevels(constant, {}, kFine, 16);
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->levels.size(), 16u);
}

}  // namespace
}  // namespace thinwire
