#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "kernels/core/cuda_status.h"
#include "kernels/core/pinned_buffer.h"
#include "kernels/core/vectors.cuh"
#include "kernels/sampling/row_sampler.cuh"
#include "kernels/sampling/sampling_internal.h"

namespace thinwire {
namespace {

struct DeviceRange {
  uint64_t best;  // key and id of the first token: the smallest of all
  float min;
  bool finite_max;  // and no NaN
};

struct MinOf {
  template <typename V>
  __device__ V operator()(V a, V b) const {
    return b < a ? b : a;
  }
};

// On all threads of a block of kSamplerThreads.
__device__ DeviceRange RangeOfRow(const float* logits, int64_t vocab) {
  __shared__ uint64_t keys[32];
  __shared__ float mins[32];
  uint64_t best = ~uint64_t{0};
  float min = INFINITY;
  bool nan = false;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < vocab; i += kSamplerThreads) {
    const float logit = logits[i];
    nan |= isnan(logit);
    min = fminf(min, logit);
    best =
        MinOf()(best, static_cast<uint64_t>(DescendingKey(logit)) << 32 | static_cast<uint32_t>(i));
  }
  best = ReduceBlock(best, ~uint64_t{0}, keys, MinOf());
  min = ReduceBlock(min, INFINITY, mins, MinOf());
  const bool any_nan = __syncthreads_or(nan) != 0;
  const float max = logits[static_cast<uint32_t>(best)];
  return {best, min, !any_nan && isfinite(max)};
}

// What a launch is told of its rows: as an argument, so that nothing is uploaded.
struct RowDraws {
  static constexpr size_t kMost = 64;

  RowDraw draws[kMost];
  int32_t places[kMost];
};

// One block a row. ids[places[row]]: the token, or -1 for logits without a softmax.
__global__ void __launch_bounds__(kSamplerThreads)
    SampleRows(const float* logits, int64_t stride, int64_t vocab,
               const __grid_constant__ RowDraws rows, int32_t* ids) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int64_t row = blockIdx.x;
  const float* const x = logits + row * stride;
  const DeviceRange range = RangeOfRow(x, vocab);
  auto id = static_cast<int32_t>(range.best & 0x7fffffff);
  const RowDraw draw = rows.draws[row];
  if (!range.finite_max) {
    id = -1;
  } else if (!draw.greedy) {
    BlockSampler sampler(x, vocab, *reinterpret_cast<SamplerShared*>(memory));
    id = sampler.Draw(range.min, x[id], draw);
  }
  if (threadIdx.x == 0) ids[rows.places[row]] = id;
}

struct LogProb {
  float value;
  int32_t good;
};

__global__ void __launch_bounds__(kSamplerThreads)
    LogProbRows(const float* logits, int64_t stride, int64_t vocab, const int32_t* targets,
                LogProb* out) {
  __shared__ double partial[32];
  const int64_t row = blockIdx.x;
  const float* const x = logits + row * stride;
  const DeviceRange range = RangeOfRow(x, vocab);
  const double max = x[static_cast<uint32_t>(range.best)];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < vocab; i += kSamplerThreads) {
    sum += exp(static_cast<double>(x[i]) - max);
  }
  sum = ReduceBlock(sum, 0.0, partial, SumOf());
  if (threadIdx.x != 0) return;
  const double above = static_cast<double>(x[targets[row]]) - max;
  out[row] = {static_cast<float>(above - log(sum)), range.finite_max ? 1 : 0};
}

// Space for `in_bytes` that go to the device and, behind them, `out_bytes` that come back.
struct RoundTrip {
  std::byte* in;
  std::byte* out;
};

absl::StatusOr<RoundTrip> Upload(const void* in, size_t in_bytes, size_t out_bytes,
                                 Stream& stream) {
  const size_t rounded = (in_bytes + 63) / 64 * 64;
  TW_ASSIGN_OR_RETURN(std::byte* const scratch,
                      stream.Scratch(static_cast<int64_t>(rounded + out_bytes)));
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(scratch, in, in_bytes, cudaMemcpyHostToDevice, CudaStream(stream)),
      stream.device());
  return RoundTrip{scratch, scratch + rounded};
}

// Page-locked memory, kept with the stream: a copy to other memory would wait inside the driver,
// where nothing bounds it.
class Landing : public StreamState {
 public:
  explicit Landing(Device device) : device_(device) {}

  absl::StatusOr<std::byte*> Get(size_t bytes) {
    const auto wanted = static_cast<int64_t>(bytes);
    if (buffer_.size_bytes() < wanted) {
      TW_ASSIGN_OR_RETURN(buffer_,
                          PinnedBuffer::Allocate(std::max<int64_t>(wanted, 4096), device_));
    }
    return buffer_.data();
  }

 private:
  Device device_;
  PinnedBuffer buffer_;
};

absl::Status Download(const std::byte* from, void* to, size_t bytes, Stream& stream) {
  TW_ASSIGN_OR_RETURN(std::byte* const landing, stream.State<Landing>().Get(bytes));
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(landing, from, bytes, cudaMemcpyDeviceToHost, CudaStream(stream)),
      stream.device());
  TW_RETURN_IF_ERROR(stream.Synchronize());
  std::memcpy(to, landing, bytes);
  return absl::OkStatus();
}

}  // namespace

absl::Status SampleThereCuda(const SampleThereArgs& args, Stream& stream) {
  TW_RETURN_IF_CUDA_ERROR(
      cudaFuncSetAttribute(SampleRows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(sizeof(SamplerShared))),
      stream.device());
  for (size_t begin = 0; begin < args.params.size(); begin += RowDraws::kMost) {
    const size_t count = std::min(RowDraws::kMost, args.params.size() - begin);
    RowDraws rows = {};
    size_t shared = 0;
    for (size_t r = 0; r < count; ++r) {
      rows.places[r] = args.places[begin + r];
      const SamplingParams& params = args.params[begin + r];
      if (params.temperature == 0.0f) continue;
      shared = sizeof(SamplerShared);
      rows.draws[r] = {1.0 / params.temperature,
                       UniformRandom(params.seed, static_cast<uint64_t>(args.positions[begin + r])),
                       params.top_p, params.top_k, false};
    }
    const int64_t stride = args.logits.row_stride();
    SampleRows<<<static_cast<unsigned>(count), kSamplerThreads, shared, CudaStream(stream)>>>(
        args.logits.data<float>() + static_cast<int64_t>(begin) * stride, stride,
        args.logits.dim(1), rows, args.token_ids.mutable_data<int32_t>());
    TW_RETURN_IF_ERROR(CudaLaunchStatus("sample", stream));
  }
  return absl::OkStatus();
}

absl::Status SampleCuda(const SampleArgs& args, Stream& stream) {
  const size_t rows = args.params.size();
  const size_t bytes = rows * sizeof(int32_t);
  TW_ASSIGN_OR_RETURN(std::byte* const there, stream.Scratch(static_cast<int64_t>(bytes)));
  std::vector<int32_t> places(rows);
  std::iota(places.begin(), places.end(), 0);
  TW_RETURN_IF_ERROR(SampleThereCuda(
      {args.logits, args.params, args.positions, places,
       TensorView(there, DType::kI32, {static_cast<int64_t>(rows)}, stream.device())},
      stream));
  TW_RETURN_IF_ERROR(Download(there, args.token_ids.data(), bytes, stream));
  for (size_t r = 0; r < rows; ++r) {
    if (args.token_ids[r] < 0) return NoSoftmax("sample", static_cast<int64_t>(r), args.logits);
  }
  return absl::OkStatus();
}

absl::Status LogProbsCuda(const LogProbArgs& args, Stream& stream) {
  const size_t rows = args.targets.size();
  std::vector<LogProb> found(rows);
  const size_t out_bytes = rows * sizeof(LogProb);
  TW_ASSIGN_OR_RETURN(const RoundTrip memory,
                      Upload(args.targets.data(), rows * sizeof(int32_t), out_bytes, stream));
  LogProbRows<<<static_cast<unsigned>(rows), kSamplerThreads, 0, CudaStream(stream)>>>(
      args.logits.data<float>(), args.logits.row_stride(), args.logits.dim(1),
      reinterpret_cast<const int32_t*>(memory.in), reinterpret_cast<LogProb*>(memory.out));
  TW_RETURN_IF_ERROR(CudaLaunchStatus("log probs", stream));
  TW_RETURN_IF_ERROR(Download(memory.out, found.data(), out_bytes, stream));
  for (size_t r = 0; r < rows; ++r) {
    if (found[r].good == 0) return NoSoftmax("log probs", static_cast<int64_t>(r), args.logits);
    args.log_probs[r] = found[r].value;
  }
  return absl::OkStatus();
}

}  // namespace thinwire
