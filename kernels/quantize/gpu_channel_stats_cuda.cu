#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/quantize/gpu_channel_stats.h"

namespace thinwire {
namespace {

// Channels of a block of threads, and threads that share a channel's rows.
constexpr int kChannels = 32;
constexpr int kParts = 16;
constexpr int kThreads = 256;

constexpr char kWhat[] = "statistics of channels";
constexpr uint64_t kNoneBad = std::numeric_limits<uint64_t>::max();

unsigned Blocks(int64_t n, int64_t of) { return static_cast<unsigned>((n + of - 1) / of); }

__global__ void Clear(int64_t width, double* sums, float* extrema, uint64_t* bad) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i == 0) *bad = kNoneBad;
  if (i >= 2 * width) return;
  sums[i] = 0.0;
  extrema[i] = i < width ? INFINITY : -INFINITY;
}

// Each of kParts threads takes every so-manyth row of a column; what they have is added in their
// order.
__global__ void AddRows(const float* x, int64_t stride, int64_t rows, int64_t width,
                        int64_t first_row, double* sums, float* extrema, uint64_t* bad) {
  __shared__ double part_sums[kParts][kChannels], part_squares[kParts][kChannels];
  __shared__ float least[kParts][kChannels], most[kParts][kChannels];
  const int64_t c = int64_t{blockIdx.x} * kChannels + threadIdx.x;
  double sum = 0.0, square = 0.0;
  float low = INFINITY, high = -INFINITY;
  if (c < width) {
    for (int64_t t = threadIdx.y; t < rows; t += kParts) {
      const float v = x[t * stride + c];
      if (!isfinite(v)) {
        atomicMin(reinterpret_cast<unsigned long long*>(bad),
                  static_cast<unsigned long long>((first_row + t) * width + c));
      }
      sum += double{v};
      square += double{v} * double{v};
      low = fminf(low, v);
      high = fmaxf(high, v);
    }
  }
  part_sums[threadIdx.y][threadIdx.x] = sum;
  part_squares[threadIdx.y][threadIdx.x] = square;
  least[threadIdx.y][threadIdx.x] = low;
  most[threadIdx.y][threadIdx.x] = high;
  __syncthreads();
  if (threadIdx.y != 0 || c >= width) return;
  for (int part = 1; part < kParts; ++part) {
    sum += part_sums[part][threadIdx.x];
    square += part_squares[part][threadIdx.x];
    low = fminf(low, least[part][threadIdx.x]);
    high = fmaxf(high, most[part][threadIdx.x]);
  }
  sums[c] += sum;
  sums[width + c] += square;
  extrema[c] = fminf(extrema[c], low);
  extrema[width + c] = fmaxf(extrema[width + c], high);
}

}  // namespace

absl::StatusOr<GpuChannelStats> GpuChannelStats::Create(int64_t width, Stream& stream) {
  TW_CHECK_GT(width, 0);
  GpuChannelStats stats;
  stats.width_ = width;
  TW_ASSIGN_OR_RETURN(stats.sums_, DeviceArray<double>::Allocate(2 * width, kWhat, stream));
  TW_ASSIGN_OR_RETURN(stats.extrema_, DeviceArray<float>::Allocate(2 * width, kWhat, stream));
  TW_ASSIGN_OR_RETURN(stats.bad_, DeviceArray<uint64_t>::Allocate(1, kWhat, stream));
  Clear<<<Blocks(2 * width, kThreads), kThreads, 0, CudaStream(stream)>>>(
      width, stats.sums_.data(), stats.extrema_.data(), stats.bad_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("no statistics", stream));
  return stats;
}

absl::Status GpuChannelStats::Add(const float* x, int64_t stride, int64_t num_rows,
                                  Stream& stream) {
  if (num_rows == 0) return absl::OkStatus();
  AddRows<<<Blocks(width_, kChannels), dim3(kChannels, kParts), 0, CudaStream(stream)>>>(
      x, stride, num_rows, width_, count_, sums_.data(), extrema_.data(), bad_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("statistics of channels", stream));
  count_ += num_rows;
  return absl::OkStatus();
}

absl::StatusOr<GpuChannelStats::Sums> GpuChannelStats::Download(Stream& stream) const {
  std::array<uint64_t, 1> bad = {};
  TW_RETURN_IF_ERROR(bad_.Download(absl::MakeSpan(bad), stream));
  if (bad[0] != kNoneBad) {
    const auto at = static_cast<int64_t>(bad[0]);
    return absl::InvalidArgumentError(
        absl::StrCat("channel ", at % width_, " of token ", at / width_,
                     " is NaN or infinite; expected a finite number"));
  }
  const auto width = static_cast<size_t>(width_);
  std::vector<double> sums(2 * width);
  std::vector<float> extrema(2 * width);
  TW_RETURN_IF_ERROR(sums_.Download(absl::MakeSpan(sums), stream));
  TW_RETURN_IF_ERROR(extrema_.Download(absl::MakeSpan(extrema), stream));
  return Sums{.count = count_,
              .sums = {sums.begin(), sums.begin() + width_},
              .squares = {sums.begin() + width_, sums.end()},
              .minima = {extrema.begin(), extrema.begin() + width_},
              .maxima = {extrema.begin() + width_, extrema.end()}};
}

}  // namespace thinwire
