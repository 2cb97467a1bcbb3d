// fp32 activations of few tokens by weights of 16 bits, each of which is read once for up to eight
// tokens and never written anywhere wider.
#include <algorithm>
#include <type_traits>

#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "kernels/linear/linear_cuda.h"

namespace thinwire {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// Outputs of a warp, which share what it reads of x.
constexpr int kRows = 4;
constexpr int kElements = 8;  // 16 bytes of weights
constexpr int kTokensPerPass = 8;
// Beyond these cuBLASLt on widened weights takes less time than this many passes.
constexpr int64_t kMostTokens = 4 * kTokensPerPass;

struct Call {
  const float* x;
  int64_t x_stride;
  const float* bias;  // or null
  float* y;
  int64_t y_stride;
  int num_tokens;
  int64_t out, in;
};

template <typename T, int kTokens>
__global__ void __launch_bounds__(kThreads) MixedFewTokens(const Call call, const T* weight) {
  const int lane = threadIdx.x % 32;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kRows;
  if (first >= call.out) return;
  const T* rows[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    rows[r] = weight + (first + r < call.out ? first + r : call.out - 1) * call.in;
  }
  const float* xs[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    xs[t] = call.x + (t < call.num_tokens ? t : call.num_tokens - 1) * call.x_stride;
  }
  float sums[kRows][kTokens] = {};
#pragma unroll 2
  for (int64_t i = lane * kElements; i < call.in; i += 32 * kElements) {
    Pack<T, kElements> w[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) w[r] = StreamPack<kElements>(rows[r] + i);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Pack<float, kElements> x = LoadPack<kElements>(xs[t] + i);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          sums[r][t] = fmaf(AsFloat(w[r].values[e]), x.values[e], sums[r][t]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = ReduceWarp(sums[r][t], SumOf());
      if (lane == 0 && t < call.num_tokens && first + r < call.out) {
        call.y[t * call.y_stride + first + r] =
            sum + (call.bias != nullptr ? call.bias[first + r] : 0.0f);
      }
    }
  }
}

}  // namespace

bool MixedFewTokensFit(const LinearArgs& args) {
  return args.x.dtype() == DType::kF32 && args.weight.dtype() != DType::kF32 &&
         args.x.dim(0) <= kMostTokens && args.weight.dim(1) % kElements == 0 &&
         RowsAlign(args.x, 16) && RowsAlign(args.weight, 16);
}

absl::Status MixedFewTokensCuda(const LinearArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const int64_t tokens = args.x.dim(0);
  Call call = {};
  call.x_stride = args.x.row_stride();
  call.bias = args.bias.empty() ? nullptr : args.bias.data<float>();
  call.y_stride = args.y.row_stride();
  call.out = args.weight.dim(0);
  call.in = args.weight.dim(1);
  const int64_t blocks = (call.out + kWarps * kRows - 1) / (kWarps * kRows);
  for (int64_t begin = 0; begin < tokens; begin += kTokensPerPass) {
    call.num_tokens = static_cast<int>(std::min<int64_t>(kTokensPerPass, tokens - begin));
    call.x = args.x.data<float>() + begin * call.x_stride;
    call.y = args.y.mutable_data<float>() + begin * call.y_stride;
    const auto launch = [&](const auto* weight) {
      const auto grid = static_cast<unsigned>(blocks);
      if (call.num_tokens == 1) {
        MixedFewTokens<std::remove_cvref_t<decltype(*weight)>, 1>
            <<<grid, kThreads, 0, native>>>(call, weight);
      } else if (call.num_tokens <= 4) {
        MixedFewTokens<std::remove_cvref_t<decltype(*weight)>, 4>
            <<<grid, kThreads, 0, native>>>(call, weight);
      } else {
        MixedFewTokens<std::remove_cvref_t<decltype(*weight)>, kTokensPerPass>
            <<<grid, kThreads, 0, native>>>(call, weight);
      }
    };
    if (args.weight.dtype() == DType::kF16) {
      launch(args.weight.data<Half>());
    } else {
      launch(args.weight.data<BFloat16>());
    }
  }
  return CudaLaunchStatus("mixed linear of few tokens", stream);
}

}  // namespace thinwire
