// k-means, and the order of channels that the published clustering makes of it (RPTQ, arXiv
// 2304.01089).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thinwire {

struct KMeansOptions {
  int64_t num_clusters = 0;  // >= 1
  uint64_t seed = 0;
  int num_runs = 10;         // the run with the least inertia wins, the first of equals
  int max_iterations = 300;  // Lloyd steps of one run
};

struct KMeansResult {
  std::vector<int32_t> labels;    // [num_points], each in [0, num_clusters)
  std::vector<double> centroids;  // [num_clusters, num_features]
  double inertia = 0.0;           // sum of squared Euclidean distances to the own centroid
};

// Clusters points [num_points, num_features] (row-major): k-means++ with 2 + floor(log k) trials a
// centroid, Lloyd until labels stop changing. In double, on the calling thread; the same result for
// a seed, always. A cluster that runs empty moves to the point farthest from its centroid; with
// fewer distinct points than clusters some labels stay unused. No points: no labels.
// InvalidArgument: NaN or infinity (point and feature named), num_clusters < 1.
absl::StatusOr<KMeansResult> KMeans(absl::Span<const double> points, int64_t num_features,
                                    const KMeansOptions& options);

// Clusters channels laid side by side, and the order that lays them so.
struct ClusterOrder {
  std::vector<int32_t> order;    // [num_channels]: position j holds channel order[j]
  std::vector<int32_t> offsets;  // [num_clusters + 1] positions; no cluster is empty
};

// The published order: argsort of the labels; inside a cluster channels keep their order (there it
// is unspecified). Unused labels vanish.
ClusterOrder OrderByLabels(absl::Span<const int32_t> labels);

}  // namespace thinwire
