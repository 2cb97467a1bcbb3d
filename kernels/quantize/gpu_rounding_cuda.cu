#include <cuda_fp16.h>

#include "kernels/codes/codes.h"
#include "kernels/core/cuda_status.h"
#include "kernels/quantize/gpu_rounding.h"

namespace thinwire {
namespace {

using Gain = GpuRoundingArgs::Gain;

constexpr int kThreads = 256;
constexpr float kMaxHalf = 65504.0f;

// The gain of a row, on every thread of its block.
template <Gain kGain>
__device__ float RowGain(const float* x, const float* inverse_step, int64_t width) {
  __shared__ double parts[kThreads];
  double part = 0.0;
  for (int64_t c = threadIdx.x; c < width; c += kThreads) {
    const float u = fabsf(x[c] * inverse_step[c]);
    part = kGain == Gain::kMax ? fmax(part, double{u}) : part + double{u} * double{u};
  }
  parts[threadIdx.x] = part;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      const double other = parts[threadIdx.x + half];
      parts[threadIdx.x] =
          kGain == Gain::kMax ? fmax(parts[threadIdx.x], other) : parts[threadIdx.x] + other;
    }
    __syncthreads();
  }
  const float statistic =
      kGain == Gain::kMax
          ? static_cast<float>(parts[0]) / kMaxGainCodes
          : static_cast<float>(fmin(sqrt(parts[0] / static_cast<double>(width)), double{kMaxHalf}));
  const float gain = __half2float(__float2half_rn(fminf(statistic, kMaxHalf)));
  return gain > 0.0f ? gain : 1.0f;
}

// A block for each row.
template <Gain kGain>
__global__ void RoundRow(const GpuRoundingArgs args) {
  float* const x = args.x + blockIdx.x * args.stride;
  float gain = 1.0f;
  if constexpr (kGain != Gain::kNone) gain = RowGain<kGain>(x, args.inverse_step, args.width);
  const float inverse_gain = 1.0f / gain;
  for (int64_t c = threadIdx.x; c < args.width; c += kThreads) {
    const float zero = args.zero[c];
    float code = kGain == Gain::kNone
                     ? fmaf(x[c], args.inverse_step[c], zero)
                     : fmaf(__fmul_rn(x[c], args.inverse_step[c]), inverse_gain, zero);
    code = rintf(fminf(fmaxf(code, 0.0f), args.max_code[c]));
    if (args.snap != nullptr) code = args.snap[static_cast<int>(code)];
    x[c] = gain * args.step[c] * (code - zero);
  }
}

}  // namespace

absl::Status RoundRowsOnGpu(const GpuRoundingArgs& args, Stream& stream) {
  if (args.num_rows == 0) return absl::OkStatus();
  const auto blocks = static_cast<unsigned>(args.num_rows);
  const cudaStream_t native = CudaStream(stream);
  switch (args.gain) {
    case Gain::kNone:
      RoundRow<Gain::kNone><<<blocks, kThreads, 0, native>>>(args);
      break;
    case Gain::kMax:
      RoundRow<Gain::kMax><<<blocks, kThreads, 0, native>>>(args);
      break;
    case Gain::kRms:
      RoundRow<Gain::kRms><<<blocks, kThreads, 0, native>>>(args);
      break;
  }
  return CudaLaunchStatus("rounding of activations", stream);
}

}  // namespace thinwire
