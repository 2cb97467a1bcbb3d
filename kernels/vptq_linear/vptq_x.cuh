// x of one token made ready for tables: times the scales, as fp16 numbers that use their range.
// Private to kernels/vptq_linear.
#pragma once

#include <cstdint>

#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"
#include "kernels/vptq_linear/vptq_linear_cuda.h"
#include "kernels/vptq_linear/vptq_result.cuh"

namespace thinwire {

// Of a block that makes x. Sums are added in an order that depends on it.
inline constexpr int kVptqXThreads = 512;

template <typename T, typename Keep>
__device__ inline VptqXSums MakeVptqXOf(const VptqPrepareCall& call, int64_t token,
                                        VptqXSums (&partial)[kVptqXThreads / 32],
                                        const Keep& keep) {
  constexpr int kWarps = kVptqXThreads / 32;
  // Kept from one pass over x to the other, of each thread; what is beyond is read again.
  constexpr int kKept = 16;
  const int64_t first = token * call.x_stride;
  const auto x_at = [&](int p) {
    const int column = call.order == nullptr ? p : call.order[p];
    return static_cast<float>(static_cast<const T*>(call.x)[first + column]);
  };
  const auto scaled = [&](float x, int p) {
    return call.scale == nullptr ? x : __fmul_rn(x, call.scale[p]);
  };
  VptqXSums all = {0.0f, 0.0f};
  const auto take = [&](float x, float value, float offset) {
    all.dot = fmaf(x, offset, all.dot);
    all.factor = fmaxf(all.factor, fabsf(value));
  };
  // All loads before the first use.
  float kept[kKept], offsets[kKept], scales[kKept];
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int p = static_cast<int>(threadIdx.x) + k * kVptqXThreads;
    scales[k] = call.scale == nullptr || p >= call.in_features ? 1.0f : __ldg(call.scale + p);
    offsets[k] = call.offset == nullptr || p >= call.in_features ? 0.0f : __ldg(call.offset + p);
  }
  WaitForPrevious();  // what x is made by
  if (call.order == nullptr) {
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int p = static_cast<int>(threadIdx.x) + k * kVptqXThreads;
      kept[k] = p < call.in_features ? static_cast<float>(static_cast<const T*>(call.x)[first + p])
                                     : 0.0f;
    }
  } else {
    int columns[kKept];
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int p = static_cast<int>(threadIdx.x) + k * kVptqXThreads;
      columns[k] = p < call.in_features ? __ldg(call.order + p) : 0;
    }
#pragma unroll
    for (int k = 0; k < kKept; ++k) {
      const int p = static_cast<int>(threadIdx.x) + k * kVptqXThreads;
      kept[k] = p < call.in_features
                    ? static_cast<float>(static_cast<const T*>(call.x)[first + columns[k]])
                    : 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const float x = kept[k];
    kept[k] = __fmul_rn(x, scales[k]);
    take(x, kept[k], offsets[k]);
  }
  constexpr int kBeyond = kKept * kVptqXThreads;
  for (int p = kBeyond + static_cast<int>(threadIdx.x); p < call.in_features; p += kVptqXThreads) {
    const float x = x_at(p);
    take(x, scaled(x, p), call.offset == nullptr ? 0.0f : call.offset[p]);
  }
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    all.dot += __shfl_xor_sync(0xffffffffu, all.dot, distance);
    all.factor = fmaxf(all.factor, __shfl_xor_sync(0xffffffffu, all.factor, distance));
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = all;
  __syncthreads();
  all = {0.0f, 0.0f};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    all.dot += partial[w].dot;
    all.factor = fmaxf(all.factor, partial[w].factor);
  }
  float up = 1.0f;
  if (call.planes > 0) {
    const int biased = static_cast<int>(__float_as_uint(all.factor) >> 23 & 255u);
    const int exponent = min(max(biased - 127, -100), 127) - 14;
    up = __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
    all.factor = __uint_as_float(static_cast<uint32_t>(127 + exponent) << 23) * call.book_factor;
  }
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int p = static_cast<int>(threadIdx.x) + k * kVptqXThreads;
    if (p < call.to_stride) keep(p, kept[k] * up);
  }
  for (int p = kBeyond + static_cast<int>(threadIdx.x); p < call.to_stride; p += kVptqXThreads) {
    keep(p, p < call.in_features ? scaled(x_at(p), p) * up : 0.0f);
  }
  return all;
}

// All threads of a block: calls keep(position, value) for each position below to_stride, values
// times a power of two which brings the largest into [2^14, 2^15), where fp16 has most below it, if
// planes are any. The sum of x times the offsets. Waits for the kernel ahead.
template <typename Keep>
__device__ inline VptqXSums MakeVptqX(const VptqPrepareCall& call, int64_t token,
                                      const Keep& keep) {
  __shared__ VptqXSums partial[kVptqXThreads / 32];  // the largest where factors are
  if (call.dtype == DType::kF16) return MakeVptqXOf<__half>(call, token, partial, keep);
  if (call.dtype == DType::kBF16) return MakeVptqXOf<__nv_bfloat16>(call, token, partial, keep);
  return MakeVptqXOf<float>(call, token, partial, keep);
}

}  // namespace thinwire
