#include <algorithm>

#include "kernels/core/cuda_status.h"
#include "kernels/core/early_launch.cuh"
#include "kernels/core/vectors.cuh"
#include "kernels/rope/rope_internal.h"
#include "kernels/rope/rotate.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

// A block takes tokens, and some of their heads: the angles once, then pairs of pieces.
template <typename T, int kCount>
__global__ void RotateRows(T* x, int64_t stride, const int32_t* positions, const float* inv_freq,
                           int64_t num_tokens, int num_heads, int half) {
  LetNextStart();
  extern __shared__ float angles[];  // cosines, then sines
  float* const cosines = angles;
  float* const sines = angles + half;
  const int pieces_per_head = half / kCount;
  const int pieces = num_heads * pieces_per_head;
  for (int64_t token = blockIdx.x; token < num_tokens; token += gridDim.x) {
    const float position = static_cast<float>(positions[token]);
    TakeAngles(position, inv_freq, half, cosines, sines);
    __syncthreads();
    WaitForPrevious();  // what makes x
    for (int piece = blockIdx.y * kThreads + threadIdx.x; piece < pieces;
         piece += gridDim.y * kThreads) {
      const int head = piece / pieces_per_head;
      const int i = piece % pieces_per_head * kCount;
      T* const lower = x + token * stride + static_cast<int64_t>(head) * 2 * half + i;
      Pack<T, kCount> a = StreamPack<kCount>(lower);
      Pack<T, kCount> b = StreamPack<kCount>(lower + half);
      RotatePair(cosines + i, sines + i, a, b);
      StorePack(a, lower);
      StorePack(b, lower + half);
    }
    __syncthreads();
  }
}

}  // namespace

absl::Status RopeCuda(const RopeArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const int64_t half = args.head_dim / 2;
  const int64_t shared = 2 * half * static_cast<int64_t>(sizeof(float));
  if (shared > (48 << 10)) {
    return absl::InvalidArgumentError("rope: expected a head_dim of at most 12288 on a GPU");
  }
  const cudaError_t error = WithFloatType(args.x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const auto launch = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const int64_t num_tokens = args.x.dim(0);
      const int64_t pieces = args.num_heads * (half / kCount);
      // Few tokens share the multiprocessors by heads, many by tokens.
      const int64_t blocks_per_token =
          num_tokens >= 256 ? 1 : std::min<int64_t>(16, (pieces + kThreads - 1) / kThreads);
      const dim3 grid(static_cast<unsigned>(std::min<int64_t>(num_tokens, 1 << 20)),
                      static_cast<unsigned>(blocks_per_token));
      const auto kernel = RotateRows<T, kCount>;
      return LaunchKernel({grid, kThreads, static_cast<size_t>(shared), native},
                          CanStartEarly(kernel), kernel, args.x.mutable_data<T>(),
                          args.x.row_stride(), args.positions.data<int32_t>(),
                          args.inv_freq.data<float>(), num_tokens, static_cast<int>(args.num_heads),
                          static_cast<int>(half));
    };
    constexpr int kCount = kElementsPerVector<T>;
    if (RowsAlign(args.x, 16) && half % kCount == 0) {
      return launch(std::integral_constant<int, kCount>());
    }
    return launch(std::integral_constant<int, 1>());
  });
  return CudaStatus(error, "rope", stream.device());
}

}  // namespace thinwire
