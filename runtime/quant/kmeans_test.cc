#include "runtime/quant/kmeans.h"

#include <algorithm>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace thinwire {
namespace {

std::vector<double> RandomPoints(int64_t size, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> points(static_cast<size_t>(size));
  for (double& value : points) value = normal(random);
  return points;
}

double Inertia(const std::vector<double>& points, int64_t width, const std::vector<int32_t>& labels,
               int64_t num_clusters) {
  double total = 0.0;
  for (int32_t cluster = 0; cluster < num_clusters; ++cluster) {
    for (int64_t f = 0; f < width; ++f) {
      double sum = 0.0;
      double squares = 0.0;
      double count = 0.0;
      for (size_t p = 0; p < labels.size(); ++p) {
        if (labels[p] != cluster) continue;
        sum += points[p * width + f];
        squares += points[p * width + f] * points[p * width + f];
        count += 1.0;
      }
      if (count > 0.0) total += squares - sum * sum / count;
    }
  }
  return total;
}

TEST(KMeansTest, FindsTheBestOfAllLabelings) {
  constexpr int64_t kPoints = 9;
  for (uint32_t seed = 1; seed <= 5; ++seed) {
    const std::vector<double> points = RandomPoints(kPoints * 2, seed);
    const auto found = KMeans(points, 2, {.num_clusters = 3, .num_runs = 30});
    ASSERT_TRUE(found.ok());
    double least = std::numeric_limits<double>::infinity();
    std::vector<int32_t> labels(kPoints);
    for (int code = 0; code < 19683; ++code) {  // 3^9
      for (int64_t p = 0, rest = code; p < kPoints; ++p, rest /= 3) {
        labels[p] = static_cast<int32_t>(rest % 3);
      }
      least = std::min(least, Inertia(points, 2, labels, 3));
    }
    EXPECT_NEAR(found->inertia, least, 1e-12);
    EXPECT_NEAR(found->inertia, Inertia(points, 2, found->labels, 3), 1e-12);
  }
}

TEST(KMeansTest, SeparatesWhatIsSeparate) {
  std::vector<double> points = RandomPoints(300 * 2, 7);
  for (int64_t p = 0; p < 300; ++p) points[p * 2] += 100.0 * static_cast<double>(p % 5);
  const auto found = KMeans(points, 2, {.num_clusters = 5});
  ASSERT_TRUE(found.ok());
  for (int64_t p = 0; p < 300; ++p) EXPECT_EQ(found->labels[p], found->labels[p % 5]);
  EXPECT_EQ(std::set<int32_t>(found->labels.begin(), found->labels.end()).size(), 5u);
}

TEST(KMeansTest, ASeedAlwaysGivesTheSame) {
  const std::vector<double> points = RandomPoints(200 * 4, 8);
  const KMeansOptions options{.num_clusters = 16, .seed = 3};
  const auto a = KMeans(points, 4, options);
  const auto b = KMeans(points, 4, options);
  EXPECT_EQ(a->labels, b->labels);
  EXPECT_EQ(a->centroids, b->centroids);
  EXPECT_EQ(a->inertia, b->inertia);
}

TEST(KMeansTest, CopiesShareALabelAndMayLeaveClustersEmpty) {
  std::vector<double> points;
  for (int p = 0; p < 20; ++p) points.push_back(p % 3);
  const auto found = KMeans(points, 1, {.num_clusters = 8});
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->inertia, 0.0);
  for (int p = 0; p < 20; ++p) EXPECT_EQ(found->labels[p], found->labels[p % 3]);
  EXPECT_EQ(std::set<int32_t>(found->labels.begin(), found->labels.end()).size(), 3u);
  const std::vector<double> constant(50, 7.5);
  EXPECT_EQ(KMeans(constant, 2, {.num_clusters = 4})->inertia, 0.0);
}

TEST(KMeansTest, AsManyClustersAsPointsCostNothing) {
  const std::vector<double> points = RandomPoints(12, 9);
  EXPECT_EQ(KMeans(points, 1, {.num_clusters = 12})->inertia, 0.0);
  EXPECT_EQ(KMeans(points, 1, {.num_clusters = 40})->inertia, 0.0);
}

TEST(KMeansTest, BadInputIsNamed) {
  std::vector<double> points(10, 1.0);
  points[7] = std::numeric_limits<double>::quiet_NaN();
  const absl::Status status = KMeans(points, 2, {.num_clusters = 2}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("point 3, feature 1"), absl::string_view::npos) << status;
  EXPECT_EQ(KMeans({}, 2, {.num_clusters = 0}).status().code(), absl::StatusCode::kInvalidArgument);
  const auto none = KMeans({}, 2, {.num_clusters = 3});
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(none->labels.empty());
}

TEST(OrderByLabelsTest, SortsStablyAndDropsUnusedLabels) {
  const std::vector<int32_t> labels = {4, 0, 4, 2, 0, 2, 2};
  const ClusterOrder order = OrderByLabels(labels);
  EXPECT_EQ(order.order, (std::vector<int32_t>{1, 4, 3, 5, 6, 0, 2}));
  EXPECT_EQ(order.offsets, (std::vector<int32_t>{0, 2, 5, 7}));
  EXPECT_EQ(OrderByLabels({}).offsets, std::vector<int32_t>{0});
}

}  // namespace
}  // namespace thinwire
