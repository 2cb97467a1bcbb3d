#include "kernels/convert/convert_internal.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

template <typename From, typename To, int kCount>
__global__ void ConvertRows(const From* from, int64_t from_stride, To* to, int64_t to_stride,
                            int64_t num_rows, int64_t width) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= width) return;
  for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
    const Pack<From, kCount> in = StreamPack<kCount>(from + row * from_stride + at);
    Pack<To, kCount> out;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      if constexpr (std::is_same_v<From, To>) {
        out.values[e] = in.values[e];
      } else {
        out.values[e] = FromFloat<To>(AsFloat(in.values[e]));
      }
    }
    StorePack(out, to + row * to_stride + at);
  }
}

template <typename T>
__global__ void GatherRows(const T* x, int64_t x_stride, const int32_t* order, T* out,
                           int64_t out_stride, int64_t num_rows, int64_t width) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= width) return;
  const int32_t channel = order[j];
  for (int64_t row = blockIdx.y; row < num_rows; row += gridDim.y) {
    out[row * out_stride + j] = x[row * x_stride + channel];
  }
}

}  // namespace

absl::Status ConvertCuda(const ConstTensorView& from, const TensorView& to, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  // Contiguous views are one long row.
  const bool flat = from.contiguous() && to.contiguous();
  const int64_t num_rows = flat ? 1 : from.dim(0);
  const int64_t width = from.num_elements() / num_rows;
  constexpr int kCount = 8;
  const auto aligned = [&](const ConstTensorView& view) {
    return reinterpret_cast<uintptr_t>(view.raw()) % 16 == 0 && width % kCount == 0 &&
           (num_rows == 1 || view.row_stride() % kCount == 0);
  };
  WithFloatType(from.dtype(), [&](auto source) {
    WithFloatType(to.dtype(), [&](auto target) {
      using From = decltype(source);
      using To = decltype(target);
      const auto launch = [&](auto count) {
        constexpr int kPiece = decltype(count)::value;
        ConvertRows<From, To, kPiece>
            <<<RowGrid(num_rows, width, kThreads * kPiece), kThreads, 0, native>>>(
                from.data<From>(), from.row_stride(), to.mutable_data<To>(), to.row_stride(),
                num_rows, width);
      };
      if (aligned(from) && aligned(to)) {
        launch(std::integral_constant<int, kCount>());
      } else {
        launch(std::integral_constant<int, 1>());
      }
    });
  });
  return CudaLaunchStatus("convert", stream);
}

absl::Status GatherColumnsCuda(const ConstTensorView& x, const ConstTensorView& order,
                               const TensorView& out, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  const int64_t rows = x.dim(0);
  const int64_t width = x.dim(1);
  const dim3 grid = RowGrid(rows, width, kThreads);
  if (DTypeBytes(x.dtype(), 1) == 4) {
    GatherRows<<<grid, kThreads, 0, native>>>(
        static_cast<const uint32_t*>(x.raw()), x.row_stride(), order.data<int32_t>(),
        static_cast<uint32_t*>(out.mutable_raw()), out.row_stride(), rows, width);
  } else {
    GatherRows<<<grid, kThreads, 0, native>>>(
        static_cast<const uint16_t*>(x.raw()), x.row_stride(), order.data<int32_t>(),
        static_cast<uint16_t*>(out.mutable_raw()), out.row_stride(), rows, width);
  }
  return CudaLaunchStatus("gather columns", stream);
}

}  // namespace thinwire
