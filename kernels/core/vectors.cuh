// For CUDA kernels that stream rows: values in 16-byte pieces as floats, and sums over a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"
#include "kernels/core/float16.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

__device__ __forceinline__ float AsFloat(float value) { return value; }
__device__ __forceinline__ float AsFloat(Half value) {
  return __half2float(__ushort_as_half(value.bits));
}
__device__ __forceinline__ float AsFloat(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T FromFloat(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else if constexpr (std::is_same_v<T, Half>) {
    return Half{__half_as_ushort(__float2half_rn(value))};
  } else {
    return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
  }
}

// Elements of T in 16 bytes.
template <typename T>
inline constexpr int kElementsPerVector = 16 / static_cast<int>(sizeof(T));

// kCount elements in registers, moved by the widest accesses that their size allows.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T) < 16 ? kCount * sizeof(T) : 16) Pack {
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes % 16 == 0);

  T values[kCount];
};

namespace internal {

template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using Type = unsigned char;
};
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned int;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

}  // namespace internal

// What is read again soon: through the caches. `from` is aligned to the pack, at most 16 bytes.
template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> LoadPack(const T* from) {
  using P = Pack<T, kCount>;
  using W = typename internal::Word<(P::kBytes < 16 ? P::kBytes : 16)>::Type;
  P pack;
#pragma unroll
  for (int i = 0; i < P::kBytes / static_cast<int>(sizeof(W)); ++i) {
    reinterpret_cast<W*>(&pack)[i] = reinterpret_cast<const W*>(from)[i];
  }
  return pack;
}

// What is read once: leaves the caches to others.
template <int kCount, typename T>
__device__ __forceinline__ Pack<T, kCount> StreamPack(const T* from) {
  using P = Pack<T, kCount>;
  using W = typename internal::Word<(P::kBytes < 16 ? P::kBytes : 16)>::Type;
  P pack;
#pragma unroll
  for (int i = 0; i < P::kBytes / static_cast<int>(sizeof(W)); ++i) {
    reinterpret_cast<W*>(&pack)[i] = __ldcs(reinterpret_cast<const W*>(from) + i);
  }
  return pack;
}

template <int kCount, typename T>
__device__ __forceinline__ void StorePack(const Pack<T, kCount>& pack, T* to) {
  using P = Pack<T, kCount>;
  using W = typename internal::Word<(P::kBytes < 16 ? P::kBytes : 16)>::Type;
#pragma unroll
  for (int i = 0; i < P::kBytes / static_cast<int>(sizeof(W)); ++i) {
    reinterpret_cast<W*>(to)[i] = reinterpret_cast<const W*>(&pack)[i];
  }
}

struct SumOf {
  template <typename V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a + b;
  }
};

struct MaxOf {
  template <typename V>
  __device__ __forceinline__ V operator()(V a, V b) const {
    return a < b ? b : a;
  }
};

// The reduction over the warp, on all lanes, in an order that is always the same.
template <typename V, typename Op>
__device__ __forceinline__ V ReduceWarp(V value, Op op) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// The reduction over a block of whole warps, on all threads, in an order that is always the same.
// `partial`: 32 values in shared memory. The next call must use others, those of the call before
// are free again: one barrier is enough then.
template <typename V, typename Op>
__device__ __forceinline__ V ReduceBlock(V value, V identity, V* partial, Op op) {
  value = ReduceWarp(value, op);
  const unsigned warps = blockDim.x / 32;
  if (warps == 1) return value;
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  const unsigned lane = threadIdx.x % 32;
  return ReduceWarp(lane < warps ? partial[lane] : identity, op);
}

// body(T()) for the C++ type of a float dtype.
template <typename Body>
auto WithFloatType(DType dtype, const Body& body) {
  TW_CHECK(IsFloat(dtype));
  if (dtype == DType::kF16) return body(Half());
  if (dtype == DType::kBF16) return body(BFloat16());
  return body(float());
}

// The grid of a kernel whose blocks take `columns_per_block` columns each, and rows blockIdx.y,
// blockIdx.y + gridDim.y and so on.
inline dim3 RowGrid(int64_t num_rows, int64_t width, int64_t columns_per_block) {
  constexpr int64_t kMostBlocks = 65535;  // in y
  return dim3(static_cast<unsigned>((width + columns_per_block - 1) / columns_per_block),
              static_cast<unsigned>(num_rows < kMostBlocks ? num_rows : kMostBlocks));
}

// Whether rows of a view can be moved in pieces of `bytes`, a power of two: its start, the distance
// between rows and their length are multiples.
inline bool RowsAlign(const ConstTensorView& view, int64_t bytes) {
  if (view.empty()) return true;
  const int64_t element = DTypeBytes(view.dtype(), 1);
  const int64_t width = view.rank() == 1 ? view.dim(0) : view.dim(view.rank() - 1);
  const int64_t stride = view.rank() == 1 || view.dim(0) <= 1 ? 0 : view.row_stride();
  return reinterpret_cast<uintptr_t>(view.raw()) % static_cast<uintptr_t>(bytes) == 0 &&
         stride * element % bytes == 0 && width * element % bytes == 0;
}

}  // namespace thinwire
