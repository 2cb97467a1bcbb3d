#include "kernels/activation/activated.cuh"
#include "kernels/activation/activation_internal.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"

namespace thinwire {
namespace {

constexpr int kThreads = 256;

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
