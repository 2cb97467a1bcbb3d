#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "kernels/norm/norm_internal.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

// x += delta: blocks of kThreads * kCount columns, and of rows.
template <typename T, int kCount>
__global__ void AddRows(T* x, int64_t x_stride, const T* delta, int64_t delta_stride,
                        int64_t num_rows, int64_t width) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= width) return;
  for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
    T* const to = x + row * x_stride + at;
    Pack<T, kCount> sum = StreamPack<kCount>(to);
    const Pack<T, kCount> term = StreamPack<kCount>(delta + row * delta_stride + at);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      sum.values[e] = FromFloat<T>(AsFloat(sum.values[e]) + AsFloat(term.values[e]));
    }
    StorePack(sum, to);
  }
}

template <typename T, int kCount>
__global__ void ScaleRows(T* x, int64_t x_stride, const float* weight, const float* bias,
                          int64_t num_rows, int64_t width) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= width) return;
  float w[kCount], b[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    w[e] = weight != nullptr ? weight[at + e] : 1.0f;
    b[e] = bias != nullptr ? bias[at + e] : 0.0f;
  }
  for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
    T* const to = x + row * x_stride + at;
    Pack<T, kCount> pack = StreamPack<kCount>(to);
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      pack.values[e] = FromFloat<T>(fmaf(AsFloat(pack.values[e]), w[e], b[e]));
    }
    StorePack(pack, to);
  }
}

}  // namespace

absl::Status AddInPlaceCuda(const TensorView& x, const ConstTensorView& delta, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  WithFloatType(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const auto launch = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      // Contiguous views are one long row.
      const bool flat = x.contiguous() && delta.contiguous();
      const int64_t rows = flat ? 1 : x.dim(0);
      const int64_t width = flat ? x.num_elements() : x.dim(1);
      AddRows<T, kCount><<<RowGrid(rows, width, kThreads * kCount), kThreads, 0, native>>>(
          x.mutable_data<T>(), x.row_stride(), delta.data<T>(), delta.row_stride(), rows, width);
    };
    if (RowsAlign(x, 16) && RowsAlign(delta, 16)) {
      launch(std::integral_constant<int, kElementsPerVector<T>>());
    } else {
      launch(std::integral_constant<int, 1>());
    }
  });
  return CudaLaunchStatus("add", stream);
}

absl::Status ScaleInPlaceCuda(const TensorView& x, const ConstTensorView& weight,
                              const ConstTensorView& bias, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  WithFloatType(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const auto launch = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      ScaleRows<T, kCount><<<RowGrid(x.dim(0), x.dim(1), kThreads * kCount), kThreads, 0, native>>>(
          x.mutable_data<T>(), x.row_stride(), weight.empty() ? nullptr : weight.data<float>(),
          bias.empty() ? nullptr : bias.data<float>(), x.dim(0), x.dim(1));
    };
    if (RowsAlign(x, 16)) {
      launch(std::integral_constant<int, kElementsPerVector<T>>());
    } else {
      launch(std::integral_constant<int, 1>());
    }
  });
  return CudaLaunchStatus("scale", stream);
}

}  // namespace thinwire
