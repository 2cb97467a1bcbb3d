#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/vectors.cuh"
#include "parallel/comm/rank_order_reduce_cuda.h"

namespace thinwire {
namespace {

constexpr int kThreads = 256;
constexpr int kMostParts = 64;

struct Parts {
  const void* data[kMostParts];
  int count;
};

template <typename T>
__device__ __forceinline__ auto Widened(T value) {
  if constexpr (std::is_integral_v<T>) {
    return value;
  } else {
    return AsFloat(value);
  }
}

template <typename T, typename A>
__device__ __forceinline__ T Narrowed(A value) {
  if constexpr (std::is_integral_v<T>) {
    return value;
  } else {
    return FromFloat<T>(value);
  }
}

template <ReduceOp kOp, typename A>
__device__ __forceinline__ A Combined(A a, A b) {
  if constexpr (kOp == ReduceOp::kMax) {
    return a < b || b != b ? b : a;
  } else if constexpr (std::is_integral_v<A>) {
    using Unsigned = std::make_unsigned_t<A>;
    return static_cast<A>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

template <ReduceOp kOp, typename T, int kCount>
__global__ void Reduce(Parts parts, int64_t n, T* out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads * kCount;
  for (int64_t at = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount; at < n;
       at += stride) {
    Pack<T, kCount> pack = LoadPack<kCount>(static_cast<const T*>(parts.data[0]) + at);
    decltype(Widened(T())) sums[kCount];
#pragma unroll
    for (int e = 0; e < kCount; ++e) sums[e] = Widened(pack.values[e]);
    for (int part = 1; part < parts.count; ++part) {
      pack = LoadPack<kCount>(static_cast<const T*>(parts.data[part]) + at);
#pragma unroll
      for (int e = 0; e < kCount; ++e) sums[e] = Combined<kOp>(sums[e], Widened(pack.values[e]));
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) pack.values[e] = Narrowed<T>(sums[e]);
    StorePack(pack, out + at);
  }
}

template <ReduceOp kOp, typename T>
void Launch(const Parts& parts, int64_t n, void* out, cudaStream_t stream) {
  constexpr int kCount = kElementsPerVector<T>;
  constexpr int64_t kMostBlocks = 4096;
  bool aligned = n % kCount == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  for (int i = 0; i < parts.count; ++i) {
    aligned &= reinterpret_cast<uintptr_t>(parts.data[i]) % 16 == 0;
  }
  const auto blocks = [&](int64_t per_block) {
    const int64_t wanted = (n + per_block - 1) / per_block;
    return static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
  };
  if (aligned) {
    Reduce<kOp, T, kCount>
        <<<blocks(kThreads * kCount), kThreads, 0, stream>>>(parts, n, static_cast<T*>(out));
  } else {
    Reduce<kOp, T, 1><<<blocks(kThreads), kThreads, 0, stream>>>(parts, n, static_cast<T*>(out));
  }
}

template <ReduceOp kOp>
void LaunchOf(DType dtype, const Parts& parts, int64_t n, void* out, cudaStream_t stream) {
  switch (dtype) {
    case DType::kF32:
      return Launch<kOp, float>(parts, n, out, stream);
    case DType::kF16:
      return Launch<kOp, Half>(parts, n, out, stream);
    case DType::kBF16:
      return Launch<kOp, BFloat16>(parts, n, out, stream);
    case DType::kI32:
      return Launch<kOp, int32_t>(parts, n, out, stream);
    default:
      TW_CHECK(dtype == DType::kI64);
      return Launch<kOp, int64_t>(parts, n, out, stream);
  }
}

}  // namespace

absl::Status ReduceInRankOrderCuda(DType dtype, ReduceOp op, absl::Span<const void* const> parts,
                                   int64_t n, void* out, Stream& stream) {
  if (parts.size() > kMostParts) {
    return absl::InvalidArgumentError(
        absl::StrCat("reductions on GPUs take at most ", kMostParts, " ranks, not ", parts.size()));
  }
  if (n == 0) return absl::OkStatus();
  const cudaStream_t native = CudaStream(stream);
  Parts all = {};
  for (const void* part : parts) all.data[all.count++] = part;
  if (op == ReduceOp::kSum) {
    LaunchOf<ReduceOp::kSum>(dtype, all, n, out, native);
  } else {
    LaunchOf<ReduceOp::kMax>(dtype, all, n, out, native);
  }
  return CudaLaunchStatus("reduction", stream);
}

}  // namespace thinwire
