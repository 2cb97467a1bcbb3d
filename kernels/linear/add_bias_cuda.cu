#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "kernels/linear/linear_cuda.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

template <typename T, int kCount>
__global__ void AddBiasRows(const float* sums, const float* bias, T* y, int64_t y_stride,
                            int64_t num_rows, int64_t width) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= width) return;
  Pack<float, kCount> terms = {};
  if (bias != nullptr) terms = LoadPack<kCount>(bias + at);
  for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
    const Pack<float, kCount> sum = StreamPack<kCount>(sums + row * width + at);
    Pack<T, kCount> out;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      out.values[e] = FromFloat<T>(sum.values[e] + terms.values[e]);
    }
    StorePack(out, y + row * y_stride + at);
  }
}

}  // namespace

absl::Status AddBiasCuda(const ConstTensorView& sums, const ConstTensorView& bias,
                         const TensorView& y, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  WithFloatType(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const auto launch = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      AddBiasRows<T, kCount>
          <<<RowGrid(y.dim(0), y.dim(1), kThreads * kCount), kThreads, 0, native>>>(
              sums.data<float>(), bias.empty() ? nullptr : bias.data<float>(), y.mutable_data<T>(),
              y.row_stride(), y.dim(0), y.dim(1));
    };
    constexpr int kCount = kElementsPerVector<T>;
    if (RowsAlign(y, 16) && RowsAlign(sums, 4 * kCount) && RowsAlign(bias, 16)) {
      launch(std::integral_constant<int, kCount>());
    } else {
      launch(std::integral_constant<int, 1>());
    }
  });
  return CudaLaunchStatus("add bias", stream);
}

}  // namespace thinwire
