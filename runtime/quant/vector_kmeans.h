// Codebooks of short vectors: weighted k-means on many vectors and all cores.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

struct VectorKMeansArgs {
  absl::Span<const float> vectors;  // [n, length], finite
  absl::Span<const float> weights;  // [n], >= 0: what a vector's squared distance counts
  int length = 0;
  int64_t count = 0;   // of centroids, >= 1
  int iterations = 0;  // Lloyd steps
  uint64_t seed = 0;
  // [count, length]: where to begin. Empty: vectors of a sample, by k-means++, or any of them where
  // there are very many centroids or `careful` is not.
  absl::Span<const float> start;
  bool careful = true;
};

// [count, length]: centroids of small sum_i weight_i |x_i - nearest c|^2. Sums are in double and in
// an order of their own: the same bits for a seed with any number of threads. A centroid that
// nothing is nearest to stays where it is.
std::vector<float> VectorKMeans(const VectorKMeansArgs& args, ThreadPool& pool);

// The same, with steps on a GPU where `gpu` is one's stream and the vectors are not longer than it
// takes: ClusterOnGpu, whose errors it returns and whose sums are in another order.
absl::StatusOr<std::vector<float>> VectorKMeans(const VectorKMeansArgs& args, ThreadPool& pool,
                                                Stream* gpu);

}  // namespace thinwire
