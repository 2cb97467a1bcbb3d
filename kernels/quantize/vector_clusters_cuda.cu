#include <algorithm>
#include <bit>
#include <cub/device/device_radix_sort.cuh>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/quantize/device_array.h"
#include "kernels/quantize/gpu_book.cuh"
#include "kernels/quantize/gpu_book.h"
#include "kernels/quantize/vector_clusters.h"

namespace thinwire {
namespace {

static_assert(kMaxGpuVectorLength == kMaxSearchLength);

constexpr int kThreads = 256;
constexpr int kSumThreads = 128;

__global__ void CountUp(int32_t* numbers, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) numbers[i] = static_cast<int32_t>(i);
}

// begins[c]: the first of `sorted` that is not below c, for c in [0, count].
__global__ void FindBegins(const int32_t* sorted, int64_t n, int64_t count, int64_t* begins) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c > count) return;
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < c) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  begins[c] = low;
}

// One block for each centroid. A thread sums one element, or the weights, of every so-manyth
// member; then the threads of an element are added in their order.
__global__ void MoveCentroids(const float* vectors, const float* weights, const int32_t* members,
                              const int64_t* begins, int length, float* centroids) {
  __shared__ double sums[kSumThreads];
  const int width = length + 1;
  const int lanes = kSumThreads / width;
  const int element = threadIdx.x % width, lane = threadIdx.x / width;
  const int64_t begin = begins[blockIdx.x], end = begins[blockIdx.x + 1];
  double sum = 0.0;
  if (lane < lanes) {
#pragma unroll 4
    for (int64_t m = begin + lane; m < end; m += lanes) {
      const int64_t i = members[m];
      const double weight = weights[i];
      sum += element < length ? weight * double{vectors[i * length + element]} : weight;
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x < width) {
    for (int other = 1; other < lanes; ++other) sum += sums[other * width + threadIdx.x];
    sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x < length && sums[length] > 0.0) {
    centroids[int64_t{blockIdx.x} * length + threadIdx.x] = static_cast<float>(sum / sums[length]);
  }
}

unsigned Blocks(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

}  // namespace

absl::Status ClusterOnGpu(const GpuClusterArgs& args, Stream& stream) {
  const auto n = static_cast<int64_t>(args.weights.size());
  TW_CHECK(args.length > 0 && args.length <= kMaxGpuVectorLength && args.count > 0 && n > 0);
  TW_CHECK_LT(n, int64_t{1} << 31);
  TW_CHECK_EQ(static_cast<int64_t>(args.vectors.size()), n * args.length);
  TW_CHECK_EQ(static_cast<int64_t>(args.centroids.size()), args.count * args.length);
  if (args.iterations == 0) return absl::OkStatus();
  const std::string what = absl::StrCat("k-means of ", n, " vectors of ", args.length);
  TW_ASSIGN_OR_RETURN(const auto vectors, DeviceArray<float>::CopyOf(args.vectors, what, stream));
  TW_ASSIGN_OR_RETURN(const auto weights, DeviceArray<float>::CopyOf(args.weights, what, stream));
  TW_ASSIGN_OR_RETURN(auto centroids, DeviceArray<float>::CopyOf(args.centroids, what, stream));
  TW_ASSIGN_OR_RETURN(const auto nearest, DeviceArray<int32_t>::Allocate(n, what, stream));
  TW_ASSIGN_OR_RETURN(const auto sorted, DeviceArray<int32_t>::Allocate(n, what, stream));
  TW_ASSIGN_OR_RETURN(const auto numbers, DeviceArray<int32_t>::Allocate(n, what, stream));
  TW_ASSIGN_OR_RETURN(const auto members, DeviceArray<int32_t>::Allocate(n, what, stream));
  TW_ASSIGN_OR_RETURN(const auto begins,
                      DeviceArray<int64_t>::Allocate(args.count + 1, what, stream));
  TW_ASSIGN_OR_RETURN(GpuBook book, GpuBook::Allocate(args.count, args.length, stream));
  const cudaStream_t native = CudaStream(stream);
  const Device device = stream.device();
  const int bits = std::bit_width(static_cast<uint64_t>(args.count));
  size_t scratch_bytes = 0;
  const auto sort = [&](void* scratch) {
    return cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, nearest.data(), sorted.data(),
                                           numbers.data(), members.data(), static_cast<int>(n), 0,
                                           bits, native);
  };
  TW_RETURN_IF_CUDA_ERROR(sort(nullptr), device);
  TW_ASSIGN_OR_RETURN(const auto scratch, DeviceArray<char>::Allocate(
                                              static_cast<int64_t>(scratch_bytes), what, stream));
  CountUp<<<Blocks(n), kThreads, 0, native>>>(numbers.data(), n);
  TW_RETURN_IF_ERROR(CudaLaunchStatus("count", stream));
  for (int iteration = 0; iteration < args.iterations; ++iteration) {
    TW_RETURN_IF_ERROR(book.Set(centroids.data(), stream));
    TW_RETURN_IF_ERROR(NearestOnGpu(book, vectors.data(), n, nearest.data(), stream));
    TW_RETURN_IF_CUDA_ERROR(sort(scratch.data()), device);
    FindBegins<<<Blocks(args.count + 1), kThreads, 0, native>>>(sorted.data(), n, args.count,
                                                                begins.data());
    TW_RETURN_IF_ERROR(CudaLaunchStatus("members of centroids", stream));
    MoveCentroids<<<static_cast<unsigned>(args.count), kSumThreads, 0, native>>>(
        vectors.data(), weights.data(), members.data(), begins.data(), args.length,
        centroids.data());
    TW_RETURN_IF_ERROR(CudaLaunchStatus("centroids", stream));
  }
  return centroids.Download(args.centroids, stream);
}

}  // namespace thinwire
