// Weighted k-means of many short vectors on a GPU.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"

namespace thinwire {

// Vectors up to this length are searched on GPUs.
inline constexpr int kMaxGpuVectorLength = 16;

struct GpuClusterArgs {
  absl::Span<const float> vectors;  // [n, length] in host memory, finite, n < 2^31
  absl::Span<const float> weights;  // [n], >= 0
  int length = 0;                   // up to kMaxGpuVectorLength
  int64_t count = 0;                // of centroids
  int iterations = 0;
  absl::Span<float> centroids;  // [count, length]: where to begin, and the result
};

// Lloyd's steps as VectorKMeans takes them on the CPU, `stream` a GPU's. Vectors go to the nearest
// centroid as NearestOnGpu finds it; sums are in double, over a centroid's vectors by their index,
// in an order that depends on nothing but their number: two runs on GPUs of one kind give the same
// bits. Done on return. ResourceExhausted names what asked for memory; Unimplemented in a build
// without CUDA.
absl::Status ClusterOnGpu(const GpuClusterArgs& args, Stream& stream);

}  // namespace thinwire
