#include "runtime/quant/dp_clusters.h"

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

std::vector<double> RandomErrors(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  std::vector<double> errors(static_cast<size_t>(size));
  for (double& value : errors) value = uniform(random);
  return errors;
}

TEST(DpClustersTest, EqualsTheBestOfAllPartitions) {
  constexpr int64_t kSteps = 4;
  for (const int64_t alignment : {1, 3}) {
    for (const int64_t num_channels : {1, 2, 9, 11}) {
      const std::vector<double> errors = RandomErrors(num_channels * kSteps, 1);
      const auto cost = [&](int64_t begin, int64_t end) {
        double least = std::numeric_limits<double>::infinity();
        for (int64_t s = 0; s < kSteps; ++s) {
          double sum = 0.0;
          for (int64_t c = begin; c < end; ++c) sum += errors[c * kSteps + s];
          least = std::min(least, sum);
        }
        return least;
      };
      for (const int64_t max_clusters : {1, 2, 3, 20}) {
        double least = std::numeric_limits<double>::infinity();
        for (int64_t cuts = 0; cuts < int64_t{1} << (num_channels - 1); ++cuts) {
          double total = 0.0;
          int64_t begin = 0;
          int64_t clusters = 0;
          bool aligned = true;
          for (int64_t end = 1; end <= num_channels; ++end) {
            const bool cut = end == num_channels || (cuts >> (end - 1) & 1) != 0;
            if (!cut) continue;
            aligned = aligned && (end == num_channels || end % alignment == 0);
            total += cost(begin, end);
            begin = end;
            ++clusters;
          }
          if (aligned && clusters <= max_clusters) least = std::min(least, total);
        }
        const StepPartition found =
            OptimalStepPartition(errors, num_channels, kSteps, alignment, max_clusters);
        EXPECT_NEAR(found.cost, least, 1e-12);
        const Partition plain = OptimalPartition(num_channels, alignment, max_clusters, cost);
        EXPECT_NEAR(plain.cost, least, 1e-12);
        EXPECT_EQ(found.offsets.front(), 0);
        EXPECT_EQ(found.offsets.back(), num_channels);
        ASSERT_EQ(found.steps.size() + 1, found.offsets.size());
        EXPECT_LE(static_cast<int64_t>(found.steps.size()), max_clusters);
        double total = 0.0;
        for (size_t k = 0; k < found.steps.size(); ++k) {
          EXPECT_LT(found.offsets[k], found.offsets[k + 1]);
          if (k > 0) {
            EXPECT_EQ(found.offsets[k] % alignment, 0);
          }
          for (int64_t c = found.offsets[k]; c < found.offsets[k + 1]; ++c) {
            total += errors[c * kSteps + found.steps[k]];
          }
        }
        EXPECT_NEAR(total, least, 1e-12);
      }
    }
  }
}

TEST(DpClustersTest, EqualTotalsTakeFewClusters) {
  const std::vector<double> zeros(64 * 3, 0.0);
  const StepPartition found = OptimalStepPartition(zeros, 64, 3, 16, 4);
  EXPECT_EQ(found.offsets, (std::vector<int32_t>{0, 64}));
  EXPECT_EQ(found.steps, std::vector<int32_t>{0});
}

TEST(DpClustersTest, SmallErrorsCountBesideHugeOnes) {
  // The first channels lose 1e20 with the step that serves the others, whose errors are below 1.
  std::vector<double> errors;
  for (int c = 0; c < 4; ++c) errors.insert(errors.end(), {1.0, 1e20, 1e20});
  for (int c = 0; c < 4; ++c) errors.insert(errors.end(), {0.5, 0.25, 0.125});
  const StepPartition found = OptimalStepPartition(errors, 8, 3, 1, 2);
  EXPECT_EQ(found.offsets, (std::vector<int32_t>{0, 4, 8}));
  EXPECT_EQ(found.steps, (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(found.cost, 4.5);
}

TEST(DpClustersTest, InfiniteCostsAreAvoidedWhereTheyCanBe) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto at_most_two = [&](int64_t begin, int64_t end) {
    return end - begin > 2 ? infinity : 1.0;
  };
  EXPECT_EQ(OptimalPartition(6, 1, 6, at_most_two).offsets, (std::vector<int32_t>{0, 2, 4, 6}));
  const Partition forced = OptimalPartition(6, 1, 2, at_most_two);
  EXPECT_EQ(forced.cost, infinity);
  EXPECT_EQ(forced.offsets.back(), 6);
}

TEST(DpClustersTest, NoChannelsHaveNoClusters) {
  const StepPartition none = OptimalStepPartition({}, 0, 2, 16, 4);
  EXPECT_EQ(none.offsets, std::vector<int32_t>{0});
  EXPECT_TRUE(none.steps.empty());
  EXPECT_EQ(none.cost, 0.0);
}

}  // namespace
}  // namespace thinwire
