#include "runtime/quant/vector_kmeans.h"

#include <algorithm>
#include <limits>
#include <random>

#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/quantize/vector_clusters.h"
#include "kernels/vptq_linear/nearest_vector.h"

namespace thinwire {
namespace {

// Beyond so many centroids k-means++ would cost more than what follows.
constexpr int64_t kMaxCareful = 8192;
constexpr int64_t kSamplesPerCentroid = 16;
constexpr int64_t kMinSamples = 16384;

// Parts that sums are formed in: their number must not depend on the threads.
constexpr int64_t kMaxParts = 64;
constexpr int64_t kMaxPartSums = int64_t{1} << 22;

double Uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

// The first index whose running sum is above `at`; of weights that are all 0, any.
int64_t Draw(const std::vector<double>& weights, double total, std::mt19937_64& random) {
  double left = Uniform(random) * total;
  for (size_t i = 0; i < weights.size(); ++i) {
    left -= weights[i];
    if (left < 0.0) return static_cast<int64_t>(i);
  }
  return static_cast<int64_t>(random() % weights.size());
}

std::vector<float> Start(const VectorKMeansArgs& args) {
  const int length = args.length;
  const auto n = static_cast<int64_t>(args.weights.size());
  const int64_t m = std::min(n, std::max(kMinSamples, kSamplesPerCentroid * args.count));
  std::mt19937_64 random(args.seed);
  std::vector<float> sample(static_cast<size_t>(m * length)), centroids;
  std::vector<double> weights(static_cast<size_t>(m));
  for (int64_t i = 0; i < m; ++i) {
    const int64_t from = i * n / m;
    std::copy_n(args.vectors.begin() + from * length, length, sample.begin() + i * length);
    weights[i] = args.weights[from];
  }
  centroids.reserve(static_cast<size_t>(args.count * length));
  std::vector<double> distances(static_cast<size_t>(m), 1.0), gains(static_cast<size_t>(m));
  const bool careful = args.careful && args.count <= kMaxCareful;
  for (int64_t c = 0; c < args.count; ++c) {
    double total = 0.0;
    if (careful || c == 0) {
      for (int64_t i = 0; i < m; ++i) total += gains[i] = weights[i] * distances[i];
    }
    const int64_t chosen =
        careful ? Draw(gains, total, random) : static_cast<int64_t>(random() % m);
    const float* const from = sample.data() + chosen * length;
    centroids.insert(centroids.end(), from, from + length);
    if (!careful) continue;
    for (int64_t i = 0; i < m; ++i) {
      float distance = 0.0f;
      for (int e = 0; e < length; ++e) {
        const float difference = sample[i * length + e] - from[e];
        distance += difference * difference;
      }
      distances[i] = c == 0 ? distance : std::min<double>(distances[i], distance);
    }
  }
  return centroids;
}

}  // namespace

std::vector<float> VectorKMeans(const VectorKMeansArgs& args, ThreadPool& pool) {
  const int length = args.length;
  const auto n = static_cast<int64_t>(args.weights.size());
  const int64_t count = args.count;
  TW_CHECK(length > 0 && count > 0 && n > 0);
  TW_CHECK_EQ(static_cast<int64_t>(args.vectors.size()), n * length);
  std::vector<float> centroids(args.start.begin(), args.start.end());
  if (centroids.empty()) centroids = Start(args);
  TW_CHECK_EQ(static_cast<int64_t>(centroids.size()), count * length);
  const int64_t sums_size = count * (length + 1);
  const int64_t parts = std::clamp<int64_t>(kMaxPartSums / sums_size, 1, kMaxParts);
  std::vector<double> sums(static_cast<size_t>(parts * sums_size));
  for (int iteration = 0; iteration < args.iterations; ++iteration) {
    const VectorBook book(centroids, length);
    std::fill(sums.begin(), sums.end(), 0.0);
    pool.ParallelForDynamic(parts, [&](int64_t part) {
      constexpr int64_t kBlock = 1024;
      double* const mine = sums.data() + part * sums_size;
      int32_t nearest[kBlock];
      const int64_t end = n * (part + 1) / parts;
      for (int64_t first = n * part / parts; first < end; first += kBlock) {
        const int64_t size = std::min(kBlock, end - first);
        book.Nearest(args.vectors.data() + first * length, size, nearest);
        for (int64_t i = 0; i < size; ++i) {
          const double weight = args.weights[first + i];
          double* const sum = mine + nearest[i] * (length + 1);
          for (int e = 0; e < length; ++e) {
            sum[e] += weight * double{args.vectors[(first + i) * length + e]};
          }
          sum[length] += weight;
        }
      }
    });
    for (int64_t c = 0; c < count; ++c) {
      double* const sum = sums.data() + c * (length + 1);
      for (int64_t part = 1; part < parts; ++part) {
        for (int e = 0; e <= length; ++e) sum[e] += sum[part * sums_size + e];
      }
      if (!(sum[length] > 0.0)) continue;
      for (int e = 0; e < length; ++e) {
        centroids[c * length + e] = static_cast<float>(sum[e] / sum[length]);
      }
    }
  }
  return centroids;
}

absl::StatusOr<std::vector<float>> VectorKMeans(const VectorKMeansArgs& args, ThreadPool& pool,
                                                Stream* gpu) {
  if constexpr (kHasCuda) {
    if (gpu != nullptr && args.length <= kMaxGpuVectorLength) {
      std::vector<float> centroids(args.start.begin(), args.start.end());
      if (centroids.empty()) centroids = Start(args);
      TW_RETURN_IF_ERROR(ClusterOnGpu({.vectors = args.vectors,
                                       .weights = args.weights,
                                       .length = args.length,
                                       .count = args.count,
                                       .iterations = args.iterations,
                                       .centroids = absl::MakeSpan(centroids)},
                                      *gpu));
      return centroids;
    }
  }
  return VectorKMeans(args, pool);
}

}  // namespace thinwire
