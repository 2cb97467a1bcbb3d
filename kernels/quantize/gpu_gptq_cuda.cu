#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/linear/blas_cuda.h"
#include "kernels/quantize/gpu_gptq.h"
#include "kernels/quantize/weight_grid.cuh"

namespace thinwire {
namespace {

constexpr int kColumns = GpuGptq::kMostColumns;
constexpr int kOfLane = kColumns / 32;
constexpr int kRows = 8;  // of a block of threads, a warp for each
constexpr int kThreads = 32 * kRows;
constexpr long long kNone = std::numeric_limits<long long>::max();

}  // namespace

struct GpuGptq::BlockArgs {
  const float* matrix;  // [in, in]: the factor (null: nothing is fed on) or the Hessian
  float* state;         // [out, in]
  float* owed;          // [out, kColumns]
  uint8_t* codes;       // [out, in]
  float* scales;        // [out, num_groups]
  uint8_t* zeros;
  const int32_t* offsets;   // [num_groups + 1]
  const int32_t* group_of;  // [in]
  const float* importance;  // [in], or null
  unsigned long long* bad;
  int64_t out, in, num_groups, begin;
  int size;  // columns of the block
  float max_code;
  bool fit;
  GpuGridOptions options;
};

namespace {

using BlockArgs = GpuGptq::BlockArgs;

__device__ __forceinline__ void PutGrid(const BlockArgs& args, int64_t row, int64_t group,
                                        Grid grid) {
  if (threadIdx.x % 32 != 0) return;
  if (isinf(grid.scale)) {
    atomicMin(args.bad, static_cast<unsigned long long>(row * args.in + args.offsets[group]));
  }
  args.scales[row * args.num_groups + group] = grid.scale;
  args.zeros[row * args.num_groups + group] = static_cast<uint8_t>(grid.zero);
}

__device__ __forceinline__ Grid GridAt(const BlockArgs& args, int64_t row, int64_t group) {
  const int64_t at = row * args.num_groups + group;
  return {args.scales[at], static_cast<float>(args.zeros[at])};
}

// One warp for each row and group.
__global__ void FitGroups(BlockArgs args) {
  const int64_t item = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  if (item >= args.out * args.num_groups) return;
  const int64_t row = item / args.num_groups, group = item % args.num_groups;
  const int64_t begin = args.offsets[group], end = args.offsets[group + 1];
  PutGrid(args, row, group,
          FitGrid(args.state + row * args.in + begin,
                  args.importance == nullptr ? nullptr : args.importance + begin, end - begin,
                  args.max_code, args.options));
}

// Shared: the block of the matrix [size, size], then a row of columns for each warp.
__device__ void LoadMatrix(const BlockArgs& args, float* matrix) {
  for (int k = threadIdx.x; k < args.size * args.size; k += kThreads) {
    matrix[k] =
        args.matrix == nullptr
            ? 0.0f
            : args.matrix[(args.begin + k / args.size) * args.in + args.begin + k % args.size];
  }
  __syncthreads();
}

// A warp walks along its row's columns of the block. Lane l has columns l, l + 32 and so on.
__global__ void __launch_bounds__(kThreads) FeedBlock(BlockArgs args) {
  extern __shared__ float matrix[];
  LoadMatrix(args, matrix);
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  if (row >= args.out) return;
  float* const shown = matrix + args.size * args.size + threadIdx.x / 32 * kColumns;
  const float* const from = args.state + row * args.in + args.begin;
  float w[kOfLane], owed[kOfLane], codes[kOfLane];
#pragma unroll
  for (int q = 0; q < kOfLane; ++q) {
    w[q] = 32 * q + lane < args.size ? from[32 * q + lane] : 0.0f;
    owed[q] = codes[q] = 0.0f;
  }
  int64_t group = -1;
  Grid grid = {1.0f, 0.0f};
#pragma unroll
  for (int q = 0; q < kOfLane; ++q) {
    for (int l = 0; l < 32 && 32 * q + l < args.size; ++l) {
      const int j = 32 * q + l;
      if (const int64_t here = args.group_of[args.begin + j]; here != group) {
        group = here;
        const int64_t first = args.offsets[group], end = args.offsets[group + 1];
        if (args.fit && first == args.begin + j) {
          // A group that reaches beyond the block begins with it: all its columns are as they lie.
          const float* values = args.state + row * args.in + first;
          if (end <= args.begin + args.size) {
#pragma unroll
            for (int p = 0; p < kOfLane; ++p) shown[32 * p + lane] = w[p];
            __syncwarp();
            values = shown + j;
          }
          grid = FitGrid(values, args.importance == nullptr ? nullptr : args.importance + first,
                         end - first, args.max_code, args.options);
          PutGrid(args, row, group, grid);
          __syncwarp();
        } else {
          grid = GridAt(args, row, group);
        }
      }
      const float value = __shfl_sync(0xffffffffu, w[q], l);
      const float code = NearestCode(grid, value, args.max_code);
      if (lane == l) codes[q] = code;
      if (args.matrix == nullptr) continue;
      const float* const u = matrix + j * args.size;
      const float error = (value - grid.scale * (code - grid.zero)) / u[j];
      if (!isfinite(error) && lane == 0) {
        atomicMin(args.bad, static_cast<unsigned long long>(row * args.in + args.begin + j));
      }
      if (lane == l) owed[q] = -error;
#pragma unroll
      for (int p = q; p < kOfLane; ++p) {
        const int k = 32 * p + lane;
        if (k > j && k < args.size) w[p] -= error * u[k];
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kOfLane; ++q) {
    if (32 * q + lane >= args.size) continue;
    args.codes[row * args.in + args.begin + 32 * q + lane] = static_cast<uint8_t>(codes[q]);
    args.owed[row * kColumns + 32 * q + lane] = owed[q];
  }
}

__global__ void __launch_bounds__(kThreads) SweepBlock(BlockArgs args) {
  extern __shared__ float matrix[];
  LoadMatrix(args, matrix);
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  if (row >= args.out) return;
  float* const slopes = args.state + row * args.in + args.begin;
  uint8_t* const all_codes = args.codes + row * args.in + args.begin;
  float slope[kOfLane], owed[kOfLane], codes[kOfLane], scales[kOfLane], zeros[kOfLane];
#pragma unroll
  for (int q = 0; q < kOfLane; ++q) {
    const int j = 32 * q + lane;
    const bool there = j < args.size;
    slope[q] = there ? slopes[j] : 0.0f;
    codes[q] = there ? static_cast<float>(all_codes[j]) : 0.0f;
    const Grid grid = there ? GridAt(args, row, args.group_of[args.begin + j]) : Grid{1.0f, 0.0f};
    scales[q] = grid.scale;
    zeros[q] = grid.zero;
    owed[q] = 0.0f;
  }
#pragma unroll
  for (int q = 0; q < kOfLane; ++q) {
    for (int l = 0; l < 32 && 32 * q + l < args.size; ++l) {
      const int j = 32 * q + l;
      const float* const h = matrix + j * args.size;
      if (!(h[j] > 0.0f)) continue;
      float change = 0.0f;
      if (lane == l) {
        const Grid grid = {scales[q], zeros[q]};
        const float target = grid.scale * (codes[q] - grid.zero) - slope[q] / h[j];
        const float code = NearestCode(grid, target, args.max_code);
        change = grid.scale * (code - codes[q]);
        codes[q] = code;
        owed[q] = change;
      }
      change = __shfl_sync(0xffffffffu, change, l);
      if (change == 0.0f) continue;
#pragma unroll
      for (int p = 0; p < kOfLane; ++p) {
        const int k = 32 * p + lane;
        if (k < args.size) slope[p] += change * h[k];
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kOfLane; ++q) {
    const int j = 32 * q + lane;
    if (j >= args.size) continue;
    all_codes[j] = static_cast<uint8_t>(codes[q]);
    slopes[j] = slope[q];
    args.owed[row * kColumns + j] = owed[q];
  }
}

__global__ void ToFloats(const double* from, int64_t n, float* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) to[i] = static_cast<float>(from[i]);
}

// to = values - weights; with_scales false: code - zero.
__global__ void Values(BlockArgs args, const float* weights, bool with_scales, float* to) {
  const int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (k >= args.out * args.in) return;
  const Grid grid = GridAt(args, k / args.in, args.group_of[k % args.in]);
  const float steps = static_cast<float>(args.codes[k]) - grid.zero;
  to[k] = with_scales ? grid.scale * steps - weights[k] : steps;
}

// By a warp for each row and group `other` <= group: products . steps over the columns of `other`,
// and of `group` itself slopes . steps.
__global__ void SumSystems(BlockArgs args, const float* products, const float* steps, int64_t group,
                           double* systems, double* slope_sums) {
  const int64_t item = int64_t{blockIdx.x} * kRows + threadIdx.x / 32;
  if (item >= args.out * (group + 1)) return;
  const int64_t row = item / (group + 1), other = item % (group + 1);
  const int lane = threadIdx.x % 32;
  const int64_t begin = args.offsets[other], end = args.offsets[other + 1];
  double sum = 0.0, slope = 0.0;
  for (int64_t i = begin + lane; i < end; i += 32) {
    const double step = steps[row * args.in + i];
    sum += double{products[row * args.in + i]} * step;
    if (other == group) slope += double{args.state[row * args.in + i]} * step;
  }
  sum = WarpSum(sum);
  slope = WarpSum(slope);
  if (lane != 0) return;
  systems[(row * args.num_groups + group) * args.num_groups + other] = sum;
  if (other == group) slope_sums[row * args.num_groups + group] = slope;
}

unsigned Blocks(int64_t items, int64_t of_block) {
  return static_cast<unsigned>((items + of_block - 1) / of_block);
}

absl::Status ToDeviceFloats(absl::Span<const double> from, absl::string_view what,
                            DeviceArray<float>& to, Stream& stream) {
  TW_ASSIGN_OR_RETURN(const auto doubles, DeviceArray<double>::CopyOf(from, what, stream));
  TW_ASSIGN_OR_RETURN(to, DeviceArray<float>::Allocate(doubles.size(), what, stream));
  ToFloats<<<Blocks(doubles.size(), kThreads), kThreads, 0, CudaStream(stream)>>>(
      doubles.data(), doubles.size(), to.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("floats", stream));
  return stream.Synchronize();  // before the doubles go
}

template <typename Kernel>
absl::Status LaunchBlock(Kernel kernel, absl::string_view name, const BlockArgs& args,
                         Stream& stream) {
  const int bytes = static_cast<int>(sizeof(float)) * (args.size * args.size + kRows * kColumns);
  TW_RETURN_IF_CUDA_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
      stream.device());
  kernel<<<Blocks(args.out, kRows), kThreads, static_cast<size_t>(bytes), CudaStream(stream)>>>(
      args);
  return CudaLaunchStatus(name, stream);
}

}  // namespace

absl::StatusOr<GpuGptq> GpuGptq::Create(int64_t out, int64_t in, int bits,
                                        absl::Span<const int32_t> group_offsets,
                                        absl::Span<const float> weights,
                                        absl::Span<const float> importance, Stream& stream) {
  TW_CHECK_EQ(static_cast<int64_t>(weights.size()), out * in);
  TW_CHECK(bits >= 1 && bits <= 8 && group_offsets.size() > 1);
  const auto num_groups = static_cast<int64_t>(group_offsets.size()) - 1;
  GpuGptq made(out, in, bits, num_groups, stream);
  made.host_offsets_.assign(group_offsets.begin(), group_offsets.end());
  std::vector<int32_t> group_of(static_cast<size_t>(in));
  for (int64_t g = 0; g < num_groups; ++g) {
    std::fill(group_of.begin() + group_offsets[g], group_of.begin() + group_offsets[g + 1],
              static_cast<int32_t>(g));
  }
  const std::string what = absl::StrCat("GPTQ of ", out, " x ", in, " weights");
  TW_ASSIGN_OR_RETURN(made.offsets_, DeviceArray<int32_t>::CopyOf(group_offsets, what, stream));
  TW_ASSIGN_OR_RETURN(made.group_of_, DeviceArray<int32_t>::CopyOf(group_of, what, stream));
  TW_ASSIGN_OR_RETURN(made.weights_, DeviceArray<float>::CopyOf(weights, what, stream));
  TW_ASSIGN_OR_RETURN(made.importance_, DeviceArray<float>::CopyOf(importance, what, stream));
  TW_ASSIGN_OR_RETURN(made.state_, DeviceArray<float>::CopyOf(weights, what, stream));
  TW_ASSIGN_OR_RETURN(made.scratch_, DeviceArray<float>::Allocate(out * in, what, stream));
  TW_ASSIGN_OR_RETURN(made.owed_, DeviceArray<float>::Allocate(out * kColumns, what, stream));
  TW_ASSIGN_OR_RETURN(made.codes_, DeviceArray<uint8_t>::Allocate(out * in, what, stream));
  TW_ASSIGN_OR_RETURN(made.zeros_, DeviceArray<uint8_t>::Allocate(out * num_groups, what, stream));
  TW_ASSIGN_OR_RETURN(made.scales_, DeviceArray<float>::Allocate(out * num_groups, what, stream));
  return made;
}

BlockArgs GpuGptq::Args(const GpuGridOptions& options) const {
  return {.state = state_.data(),
          .owed = owed_.data(),
          .codes = codes_.data(),
          .scales = scales_.data(),
          .zeros = zeros_.data(),
          .offsets = offsets_.data(),
          .group_of = group_of_.data(),
          .importance = importance_.size() == 0 ? nullptr : importance_.data(),
          .out = out_,
          .in = in_,
          .num_groups = num_groups_,
          .max_code = static_cast<float>((1 << bits_) - 1),
          .options = options};
}

absl::Status GpuGptq::SetFactor(absl::Span<const double> factor) {
  TW_CHECK_EQ(static_cast<int64_t>(factor.size()), in_ * in_);
  return ToDeviceFloats(factor, "factor of a Hessian", factor_, *stream_);
}

absl::Status GpuGptq::SetHessian(absl::Span<const double> hessian) {
  TW_CHECK_EQ(static_cast<int64_t>(hessian.size()), in_ * in_);
  return ToDeviceFloats(hessian, "Hessian", hessian_, *stream_);
}

absl::Status GpuGptq::FitAllGroups(const GpuGridOptions& options) {
  TW_ASSIGN_OR_RETURN(const auto bad,
                      DeviceArray<unsigned long long>::CopyOf({kNone}, "codes", *stream_));
  BlockArgs args = Args(options);
  args.bad = bad.data();
  FitGroups<<<Blocks(out_ * num_groups_, kRows), kThreads, 0, CudaStream(*stream_)>>>(args);
  TW_RETURN_IF_ERROR(CudaLaunchStatus("grids of groups", *stream_));
  return stream_->Synchronize();
}

absl::StatusOr<int64_t> GpuGptq::FeedForward(absl::Span<const std::pair<int64_t, int64_t>> blocks,
                                             bool fit, const GpuGridOptions& options) {
  std::vector<unsigned long long> worst = {kNone};
  TW_ASSIGN_OR_RETURN(const auto bad,
                      DeviceArray<unsigned long long>::CopyOf(worst, "codes", *stream_));
  BlockArgs args = Args(options);
  args.matrix = factor_.size() == 0 ? nullptr : factor_.data();
  args.bad = bad.data();
  args.fit = fit;
  for (const auto& [begin, end] : blocks) {
    args.begin = begin;
    args.size = static_cast<int>(end - begin);
    TW_RETURN_IF_ERROR(LaunchBlock(FeedBlock, "feedback of columns", args, *stream_));
    if (args.matrix == nullptr || end == in_) continue;
    TW_RETURN_IF_ERROR(SgemmCuda({.m = out_,
                                  .n = in_ - end,
                                  .k = end - begin,
                                  .a = owed_.data(),
                                  .lda = kColumns,
                                  .b = factor_.data() + begin * in_ + end,
                                  .ldb = in_,
                                  .beta = 1.0f,
                                  .c = state_.data() + end,
                                  .ldc = in_},
                                 *stream_));
  }
  TW_RETURN_IF_ERROR(bad.Download(absl::MakeSpan(worst), *stream_));
  return worst[0] == kNone ? -1 : static_cast<int64_t>(worst[0]);
}

absl::Status GpuGptq::Slopes() {
  Values<<<Blocks(out_ * in_, kThreads), kThreads, 0, CudaStream(*stream_)>>>(
      Args({}), weights_.data(), true, scratch_.data());
  TW_RETURN_IF_ERROR(CudaLaunchStatus("errors of weights", *stream_));
  return SgemmCuda({.m = out_,
                    .n = in_,
                    .k = in_,
                    .a = scratch_.data(),
                    .lda = in_,
                    .b = hessian_.data(),
                    .ldb = in_,
                    .c = state_.data(),
                    .ldc = in_},
                   *stream_);
}

absl::Status GpuGptq::Sweep(absl::Span<const std::pair<int64_t, int64_t>> blocks) {
  BlockArgs args = Args({});
  args.matrix = hessian_.data();
  for (const auto& [begin, end] : blocks) {
    args.begin = begin;
    args.size = static_cast<int>(end - begin);
    TW_RETURN_IF_ERROR(LaunchBlock(SweepBlock, "descent of columns", args, *stream_));
    for (const auto& [first, last] : {std::pair(int64_t{0}, begin), std::pair(end, in_)}) {
      if (first == last) continue;
      TW_RETURN_IF_ERROR(SgemmCuda({.m = out_,
                                    .n = last - first,
                                    .k = end - begin,
                                    .a = owed_.data(),
                                    .lda = kColumns,
                                    .b = hessian_.data() + begin * in_ + first,
                                    .ldb = in_,
                                    .beta = 1.0f,
                                    .c = state_.data() + first,
                                    .ldc = in_},
                                   *stream_));
    }
  }
  return absl::OkStatus();
}

absl::Status GpuGptq::Systems(int64_t first, int64_t num_rows, std::vector<double>& systems,
                              std::vector<double>& slopes) {
  TW_CHECK(first >= 0 && num_rows > 0 && first + num_rows <= out_);
  constexpr absl::string_view kWhat = "systems of scales";
  TW_ASSIGN_OR_RETURN(const auto sums, DeviceArray<double>::Allocate(
                                           num_rows * num_groups_ * num_groups_, kWhat, *stream_));
  TW_ASSIGN_OR_RETURN(const auto slope_sums,
                      DeviceArray<double>::Allocate(num_rows * num_groups_, kWhat, *stream_));
  TW_ASSIGN_OR_RETURN(const auto products,
                      DeviceArray<float>::Allocate(num_rows * in_, kWhat, *stream_));
  const cudaStream_t native = CudaStream(*stream_);
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(sums.data(), 0, sizeof(double) * static_cast<size_t>(sums.size()), native),
      stream_->device());
  BlockArgs args = Args({});
  args.out = num_rows;
  args.state += first * in_;
  args.codes += first * in_;
  args.scales += first * num_groups_;
  args.zeros += first * num_groups_;
  float* const steps = scratch_.data();
  Values<<<Blocks(num_rows * in_, kThreads), kThreads, 0, native>>>(args, weights_.data(), false,
                                                                    steps);
  TW_RETURN_IF_ERROR(CudaLaunchStatus("steps of codes", *stream_));
  for (int64_t g = 0; g < num_groups_; ++g) {
    const int64_t begin = host_offsets_[g], end = host_offsets_[g + 1];
    // Columns up to the group's end: the lower triangle.
    TW_RETURN_IF_ERROR(SgemmCuda({.m = num_rows,
                                  .n = end,
                                  .k = end - begin,
                                  .a = steps + begin,
                                  .lda = in_,
                                  .b = hessian_.data() + begin * in_,
                                  .ldb = in_,
                                  .c = products.data(),
                                  .ldc = in_},
                                 *stream_));
    SumSystems<<<Blocks(num_rows * (g + 1), kRows), kThreads, 0, native>>>(
        args, products.data(), steps, g, sums.data(), slope_sums.data());
    TW_RETURN_IF_ERROR(CudaLaunchStatus("systems of scales", *stream_));
  }
  systems.resize(static_cast<size_t>(sums.size()));
  slopes.resize(static_cast<size_t>(slope_sums.size()));
  TW_RETURN_IF_ERROR(sums.Download(absl::MakeSpan(systems), *stream_));
  return slope_sums.Download(absl::MakeSpan(slopes), *stream_);
}

absl::Status GpuGptq::SetScales(absl::Span<const float> scales) {
  return scales_.Upload(scales, *stream_);
}

absl::Status GpuGptq::Get(const GpuGptqCodes& codes) const {
  TW_RETURN_IF_ERROR(codes_.Download(codes.codes, *stream_));
  TW_RETURN_IF_ERROR(scales_.Download(codes.scales, *stream_));
  return zeros_.Download(codes.zeros, *stream_);
}

}  // namespace thinwire
