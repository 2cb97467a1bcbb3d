#include <algorithm>

#include "kernels/core/cuda_status.h"
#include "kernels/quantize/gpu_book.cuh"
#include "kernels/quantize/gpu_book.h"

namespace thinwire {
namespace {

constexpr int kScaleThreads = 1024;
constexpr int kSetThreads = 128;
constexpr int kSearchWarps = 8;
constexpr int kSearchTiles = 8;       // of 8 vectors each: a warp's
constexpr float kFarAway = -3.2e38f;  // below any score

// scale[0]: the power of two that puts the largest element into [64, 128), where fp16 is exact to
// 2^-11 down to 2^-20 of it and x may be 512 times as large. scale[1]: the largest |c| after it.
__global__ void FindScale(const float* vectors, int64_t count, int length, float* scale) {
  __shared__ float most[kScaleThreads], most_square[kScaleThreads];
  float largest = 0.0f, largest_square = 0.0f;
  for (int64_t c = threadIdx.x; c < count; c += kScaleThreads) {
    float square = 0.0f;
    for (int e = 0; e < length; ++e) {
      const float value = fabsf(vectors[c * length + e]);
      largest = fmaxf(largest, value);
      square = fmaf(value, value, square);
    }
    largest_square = fmaxf(largest_square, square);
  }
  most[threadIdx.x] = largest;
  most_square[threadIdx.x] = largest_square;
  __syncthreads();
  for (int half = kScaleThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      most[threadIdx.x] = fmaxf(most[threadIdx.x], most[threadIdx.x + half]);
      most_square[threadIdx.x] = fmaxf(most_square[threadIdx.x], most_square[threadIdx.x + half]);
    }
    __syncthreads();
  }
  if (threadIdx.x != 0) return;
  // Beyond 2^120 either way a scale would not be a number of its own.
  const int exponent = most[0] > 0.0f ? max(-120, min(120, ilogbf(most[0]))) : 6;
  scale[0] = ldexpf(1.0f, 6 - exponent);
  scale[1] = sqrtf(most_square[0]) * scale[0] * 1.001f;
}

// One thread for each vector, padding included.
__global__ void SetBook(const float* vectors, int64_t count, int length, int groups,
                        const float* scale, uint16_t* fragments, float* norms, float* centroids,
                        float* negative) {
  const int64_t c = int64_t{blockIdx.x} * kSetThreads + threadIdx.x;
  if (c >= int64_t{groups} * kBookGroup) return;
  const bool there = c < count;
  const int64_t group = c / kBookGroup;
  const int row = static_cast<int>(c % kBookGroup);
  const int half = row / 32, pair = row / 16 % 2, lower = row / 8 % 2, g = row % 8;
  const int steps = BookSteps(length);
  const float factor = scale[0];
  double square = 0.0;
  for (int e = 0; e < 8 * steps; ++e) {
    const float value = there && e < length ? vectors[c * length + e] : 0.0f;
    square += double{value} * double{value};
    if (e < length) centroids[c * length + e] = value;
    const int lane = 4 * g + e % 8 / 2;
    const int64_t vector = ((group * steps + e / 8) * 2 + half) * 32 + lane;
    fragments[vector * 8 + (2 * pair + lower) * 2 + e % 2] =
        __half_as_ushort(__float2half_rn(value * factor));
  }
  const double scaled = square * double{factor} * double{factor};
  norms[((group * 2 + half) * 8 + g) * 4 + 2 * pair + lower] =
      there ? static_cast<float>(-0.5 * scaled) : kFarAway;
  negative[c] = there ? static_cast<float>(-0.5 * square) : kFarAway;
}

template <int kSteps>
__global__ void __launch_bounds__(kSearchWarps * 32, 2)
    SearchBook(BookView book, const float* from, int64_t n, int32_t* indices) {
  const int lane = threadIdx.x % 32;
  const int64_t first =
      (int64_t{blockIdx.x} * kSearchWarps + threadIdx.x / 32) * (8 * kSearchTiles);
  if (first >= n) return;
  const int length = book.length;
  BookSearch<kSteps, kSearchTiles, false> search;
  search.Load(book, [&](int v, int e) {
    return first + v < n ? __ldg(from + (first + v) * length + e) : 0.0f;
  });
  search.Run(book, 0, 1);
#pragma unroll
  for (int t = 0; t < kSearchTiles; ++t) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int64_t vector = first + 8 * t + 2 * (lane % 4) + c;
      const float* const x = from + min(vector, n - 1) * length;
      float most = search.best[t][c];
      for (int step = 4; step < 32; step *= 2) {
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
      }
      float square = 0.0f;
      for (int e = 0; e < length; ++e) {
        const float value = __ldg(x + e);
        square = fmaf(value, value, square);
      }
      unsigned long long key = 0;
      if (search.best[t][c] >= most - SearchMargin(book, sqrtf(square))) {
        float score;
        int index;
        ScoreAgain(
            book, search.where[t][c], [&](int e) { return __ldg(x + e); }, score, index);
        key = SearchKey(score, index);
      }
      for (int step = 4; step < 32; step *= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffffu, key, step);
        key = key > other ? key : other;
      }
      if (lane < 4 && vector < n) indices[vector] = IndexOfKey(key);
    }
  }
}

}  // namespace

absl::StatusOr<GpuBook> GpuBook::Allocate(int64_t count, int length, Stream& stream) {
  TW_CHECK(count > 0 && length > 0 && length <= kMaxSearchLength);
  constexpr absl::string_view kWhat = "codebook";
  GpuBook book;
  book.count_ = count;
  book.length_ = length;
  book.groups_ = static_cast<int>((count + kBookGroup - 1) / kBookGroup);
  const int64_t padded = int64_t{book.groups_} * kBookGroup;
  TW_ASSIGN_OR_RETURN(book.fragments_, DeviceArray<uint32_t>::Allocate(
                                           padded * 4 * BookSteps(length), kWhat, stream));
  TW_ASSIGN_OR_RETURN(book.norms_, DeviceArray<float>::Allocate(padded, kWhat, stream));
  TW_ASSIGN_OR_RETURN(book.centroids_,
                      DeviceArray<float>::Allocate(padded * length, kWhat, stream));
  TW_ASSIGN_OR_RETURN(book.negative_, DeviceArray<float>::Allocate(padded, kWhat, stream));
  TW_ASSIGN_OR_RETURN(book.scale_, DeviceArray<float>::Allocate(2, kWhat, stream));
  return book;
}

absl::Status GpuBook::Set(const float* vectors, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  FindScale<<<1, kScaleThreads, 0, native>>>(vectors, count_, length_, scale_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("scale of a codebook", stream));
  const int64_t padded = int64_t{groups_} * kBookGroup;
  SetBook<<<static_cast<unsigned>((padded + kSetThreads - 1) / kSetThreads), kSetThreads, 0,
            native>>>(vectors, count_, length_, groups_, scale_.data(),
                      reinterpret_cast<uint16_t*>(fragments_.data()), norms_.data(),
                      centroids_.data(), negative_.data());
  return CudaLaunchStatus("codebook", stream);
}

BookView GpuBook::view() const {
  return {.fragments = reinterpret_cast<const uint4*>(fragments_.data()),
          .norms = reinterpret_cast<const float4*>(norms_.data()),
          .centroids = centroids_.data(),
          .negative = negative_.data(),
          .scale = scale_.data(),
          .groups = groups_,
          .length = length_};
}

absl::Status NearestOnGpu(const GpuBook& book, const float* from, int64_t n, int32_t* indices,
                          Stream& stream) {
  if (n == 0) return absl::OkStatus();
  constexpr int64_t kOfBlock = 8 * kSearchTiles * kSearchWarps;
  const auto blocks = static_cast<unsigned>((n + kOfBlock - 1) / kOfBlock);
  const BookView view = book.view();
  const cudaStream_t native = CudaStream(stream);
  if (BookSteps(view.length) == 1) {
    SearchBook<1><<<blocks, kSearchWarps * 32, 0, native>>>(view, from, n, indices);
  } else {
    SearchBook<2><<<blocks, kSearchWarps * 32, 0, native>>>(view, from, n, indices);
  }
  return CudaLaunchStatus("nearest vectors", stream);
}

}  // namespace thinwire
