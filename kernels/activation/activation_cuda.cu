#include "kernels/activation/activation_internal.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

// x / (1 + exp(-v)), where v has the sign of x: the exponential is of -|v|, so that it cannot
// overflow.
__device__ __forceinline__ float TimesLogistic(float x, float v) {
  const float e = expf(-fabsf(v));
  return x * ((x < 0.0f ? e : 1.0f) / (1.0f + e));
}

template <ActivationKind kKind>
__device__ __forceinline__ float Activated(float x) {
  if constexpr (kKind == ActivationKind::kRelu) return x < 0.0f ? 0.0f : x;  // keeps NaN
  // -infinity, where the functions below would be -infinity * 0, stands for the smallest finite
  // value.
  if (x < -3.402823466e38f) x = -3.402823466e38f;
  if constexpr (kKind == ActivationKind::kSilu) return TimesLogistic(x, x);
  if constexpr (kKind == ActivationKind::kGelu) {
    // 1 + erf(z) = erfc(-z), which does not cancel.
    return x * (0.5f * erfcf(x * -0.70710678118654752f));
  }
  // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2u)), 2u = 2 sqrt(2/pi) (x + 0.044715 x^3).
  const float factor = fmaf(x * x, 0.044715f, 1.0f);
  return TimesLogistic(x, 1.595769122f * x * factor);
}

struct ActivationParams {
  const void* gate;
  const void* up;  // null for none
  void* out;
  int64_t gate_stride, up_stride, out_stride;
  int64_t num_rows, width;
};

template <ActivationKind kKind, typename T, int kCount>
__global__ void ActivateRows(ActivationParams p) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (at >= p.width) return;
  for (int64_t row = blockIdx.y; row < p.num_rows; row += gridDim.y) {
    Pack<T, kCount> pack =
        StreamPack<kCount>(static_cast<const T*>(p.gate) + row * p.gate_stride + at);
    Pack<T, kCount> up;
    if (p.up != nullptr) {
      up = StreamPack<kCount>(static_cast<const T*>(p.up) + row * p.up_stride + at);
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      float value = Activated<kKind>(AsFloat(pack.values[e]));
      if (p.up != nullptr) value *= AsFloat(up.values[e]);
      pack.values[e] = FromFloat<T>(value);
    }
    StorePack(pack, static_cast<T*>(p.out) + row * p.out_stride + at);
  }
}

template <ActivationKind kKind>
void Launch(const GatedActivationArgs& args, cudaStream_t stream) {
  ActivationParams p = {args.gate.raw(),        args.up.raw(),        args.out.mutable_raw(),
                        args.gate.row_stride(), args.up.row_stride(), args.out.row_stride(),
                        args.out.dim(0),        args.out.dim(1)};
  if (args.gate.contiguous() && args.up.contiguous() && args.out.contiguous()) {
    p.width *= p.num_rows;  // one long row
    p.num_rows = 1;
  }
  WithFloatType(args.out.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kCount = kElementsPerVector<T>;
    if (RowsAlign(args.gate, 16) && RowsAlign(args.up, 16) && RowsAlign(args.out, 16)) {
      ActivateRows<kKind, T, kCount>
          <<<RowGrid(p.num_rows, p.width, kThreads * kCount), kThreads, 0, stream>>>(p);
    } else {
      ActivateRows<kKind, T, 1><<<RowGrid(p.num_rows, p.width, kThreads), kThreads, 0, stream>>>(p);
    }
  });
}

}  // namespace

absl::Status ActivationCuda(const GatedActivationArgs& args, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  switch (args.kind) {
    case ActivationKind::kRelu:
      Launch<ActivationKind::kRelu>(args, native);
      break;
    case ActivationKind::kSilu:
      Launch<ActivationKind::kSilu>(args, native);
      break;
    case ActivationKind::kGelu:
      Launch<ActivationKind::kGelu>(args, native);
      break;
    case ActivationKind::kGeluTanh:
      Launch<ActivationKind::kGeluTanh>(args, native);
      break;
  }
  return CudaLaunchStatus("activation", stream);
}

}  // namespace thinwire
