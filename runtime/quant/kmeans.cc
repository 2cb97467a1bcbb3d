#include "runtime/quant/kmeans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

class Runner {
 public:
  Runner(absl::Span<const double> points, int64_t num_features, const KMeansOptions& options)
      : points_(points),
        width_(num_features),
        num_points_(static_cast<int64_t>(points.size()) / num_features),
        num_clusters_(options.num_clusters),
        max_iterations_(options.max_iterations),
        random_(options.seed) {}

  KMeansResult Run() {
    KMeansResult result;
    result.centroids = InitialCentroids();
    result.labels.assign(static_cast<size_t>(num_points_), -1);
    for (int i = 0; i < max_iterations_ && Assign(result); ++i) Update(result);
    Assign(result);
    for (int64_t p = 0; p < num_points_; ++p) result.inertia += distances_[p];
    return result;
  }

 private:
  const double* Point(int64_t p) const { return points_.data() + p * width_; }

  double Distance(const double* a, const double* b) const {
    double sum = 0.0;
    for (int64_t f = 0; f < width_; ++f) sum += (a[f] - b[f]) * (a[f] - b[f]);
    return sum;
  }

  // In [0, 1), the same on every platform.
  double Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }

  // k-means++ (Arthur and Vassilvitskii, 2007): each next centroid is a point drawn by its squared
  // distance to those chosen; of a few draws, the one that lowers the sum most.
  std::vector<double> InitialCentroids() {
    const auto num_trials = 2 + static_cast<int64_t>(std::log(static_cast<double>(num_clusters_)));
    std::vector<double> centroids(static_cast<size_t>(num_clusters_ * width_));
    std::vector<double> nearest(static_cast<size_t>(num_points_));
    std::vector<double> candidate(nearest.size());
    std::vector<double> best(nearest.size());
    const auto choose = [&](int64_t cluster, int64_t point) {
      std::copy_n(Point(point), width_, centroids.begin() + cluster * width_);
    };
    const auto first = std::min(num_points_ - 1,
                                static_cast<int64_t>(Uniform() * static_cast<double>(num_points_)));
    choose(0, first);
    for (int64_t p = 0; p < num_points_; ++p) nearest[p] = Distance(Point(p), Point(first));
    for (int64_t cluster = 1; cluster < num_clusters_; ++cluster) {
      const double total = std::accumulate(nearest.begin(), nearest.end(), 0.0);
      double least = std::numeric_limits<double>::infinity();
      int64_t chosen = 0;
      for (int64_t trial = 0; trial < num_trials; ++trial) {
        double left = Uniform() * total;
        int64_t drawn = 0;
        while (drawn + 1 < num_points_ && left >= nearest[drawn]) left -= nearest[drawn++];
        double sum = 0.0;
        for (int64_t p = 0; p < num_points_; ++p) {
          candidate[p] = std::min(nearest[p], Distance(Point(p), Point(drawn)));
          sum += candidate[p];
        }
        if (sum < least) {
          least = sum;
          chosen = drawn;
          best.swap(candidate);
        }
      }
      choose(cluster, chosen);
      nearest = best;
    }
    return centroids;
  }

  // To the nearest centroid, the first of equals. True when a label changed.
  bool Assign(KMeansResult& result) {
    distances_.resize(static_cast<size_t>(num_points_));
    bool changed = false;
    for (int64_t p = 0; p < num_points_; ++p) {
      double least = std::numeric_limits<double>::infinity();
      int32_t label = 0;
      for (int64_t cluster = 0; cluster < num_clusters_; ++cluster) {
        const double distance = Distance(Point(p), result.centroids.data() + cluster * width_);
        if (distance < least) {
          least = distance;
          label = static_cast<int32_t>(cluster);
        }
      }
      changed = changed || result.labels[p] != label;
      result.labels[p] = label;
      distances_[p] = least;
    }
    return changed;
  }

  // Centroids become the means of their points; an empty cluster takes the point that is farthest
  // from its own centroid, away from that cluster.
  void Update(KMeansResult& result) {
    std::vector<int64_t> sizes(static_cast<size_t>(num_clusters_), 0);
    for (const int32_t label : result.labels) ++sizes[label];
    for (int64_t cluster = 0; cluster < num_clusters_; ++cluster) {
      if (sizes[cluster] > 0) continue;
      const auto farthest =
          std::max_element(distances_.begin(), distances_.end()) - distances_.begin();
      if (!(distances_[farthest] > 0.0)) break;  // fewer distinct points than clusters
      --sizes[result.labels[farthest]];
      result.labels[farthest] = static_cast<int32_t>(cluster);
      ++sizes[cluster];
      distances_[farthest] = 0.0;
    }
    std::vector<double> sums(result.centroids.size(), 0.0);
    for (int64_t p = 0; p < num_points_; ++p) {
      double* sum = sums.data() + result.labels[p] * width_;
      for (int64_t f = 0; f < width_; ++f) sum[f] += Point(p)[f];
    }
    for (int64_t cluster = 0; cluster < num_clusters_; ++cluster) {
      if (sizes[cluster] == 0) continue;  // stays where it is
      for (int64_t f = 0; f < width_; ++f) {
        result.centroids[cluster * width_ + f] =
            sums[cluster * width_ + f] / static_cast<double>(sizes[cluster]);
      }
    }
  }

  const absl::Span<const double> points_;
  const int64_t width_;
  const int64_t num_points_;
  const int64_t num_clusters_;
  const int max_iterations_;
  std::mt19937_64 random_;
  std::vector<double> distances_;  // [num_points], squared, to the own centroid
};

}  // namespace

absl::StatusOr<KMeansResult> KMeans(absl::Span<const double> points, int64_t num_features,
                                    const KMeansOptions& options) {
  TW_CHECK_GE(num_features, 1);
  TW_CHECK_EQ(static_cast<int64_t>(points.size()) % num_features, 0);
  if (options.num_clusters < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("k-means into ", options.num_clusters, " clusters, expected at least 1"));
  }
  for (size_t i = 0; i < points.size(); ++i) {
    if (std::isfinite(points[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "k-means point ", static_cast<int64_t>(i) / num_features, ", feature ",
        static_cast<int64_t>(i) % num_features, ": ", points[i], ", expected a finite number"));
  }
  KMeansResult best;
  if (points.empty()) {
    best.centroids.assign(static_cast<size_t>(options.num_clusters * num_features), 0.0);
    return best;
  }
  Runner runner(points, num_features, options);
  for (int run = 0; run < std::max(1, options.num_runs); ++run) {
    KMeansResult result = runner.Run();
    if (run == 0 || result.inertia < best.inertia) best = std::move(result);
  }
  return best;
}

ClusterOrder OrderByLabels(absl::Span<const int32_t> labels) {
  ClusterOrder result;
  result.order.resize(labels.size());
  std::iota(result.order.begin(), result.order.end(), 0);
  std::stable_sort(result.order.begin(), result.order.end(),
                   [&](int32_t a, int32_t b) { return labels[a] < labels[b]; });
  for (size_t j = 0; j < labels.size(); ++j) {
    if (j == 0 || labels[result.order[j]] != labels[result.order[j - 1]]) {
      result.offsets.push_back(static_cast<int32_t>(j));
    }
  }
  result.offsets.push_back(static_cast<int32_t>(labels.size()));
  return result;
}

}  // namespace thinwire
