// x as integers for byte books. Private to kernels/vptq_linear.
#pragma once

#include <cstdint>

#include "kernels/core/cuda_math.cuh"
#include "kernels/core/early_launch.cuh"
#include "kernels/vptq_linear/vptq_byte_block.h"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"

namespace thinwire::vptq {

inline constexpr int kLargestInteger = 32639;  // 127 * 256 + 127

// The power of two that brings the largest of a strip, given by its bits without the sign, up to
// at most kLargestInteger, as far as both it and its inverse are floats; NaN if it is not finite.
struct ByteScale {
  float up, down;
};
__device__ inline ByteScale ByteScaleOf(uint32_t largest) {
  if (largest >= 0x7f800000u) return {0.0f, __uint_as_float(0x7fc00000u)};
  const bool over = (largest & 0x7fffffu) > 0x7efe00u;  // above 32639 / 32768 of the next power
  const int exponent = max(static_cast<int>(largest >> 23) - 127, -105) + (over ? 1 : 0);
  const auto power = [](int e) { return __uint_as_float(static_cast<uint32_t>(127 + e) << 23); };
  return {power(14 - exponent), power(exponent - 14)};
}

// All lanes of a warp: strips `first` and `first` + kByteXWarps of a token, where they exist. Adds
// x times the offsets to `dot`, lane by lane. factors: what the strips' integers are multiplied
// with. keep(row, position, integer): for each position and row of the token. Waits for the kernel
// ahead.
template <typename T, typename Keep>
__device__ inline void MakeByteStripsOf(const VptqBytePrepareCall& call, int64_t token, int first,
                                        float& dot, float (&factors)[2], const Keep& keep) {
  constexpr int kEach = kVptqByteStrip / 32;  // values of a lane
  const int lane = threadIdx.x % 32;
  const auto* const x = static_cast<const T*>(call.x) + token * call.x_stride;
  const auto position = [&](int k) {
    return (first + k / kEach * kByteXWarps) * kVptqByteStrip + k % kEach * 32 + lane;
  };
  float values[2 * kEach], scales[2 * kEach], offsets[2 * kEach];
  int columns[2 * kEach];
#pragma unroll
  for (int k = 0; k < 2 * kEach; ++k) {
    const int p = position(k);
    const bool there = p < call.in_features;
    scales[k] = call.scale == nullptr || !there ? 1.0f : __ldg(call.scale + p);
    offsets[k] = call.offset == nullptr || !there ? 0.0f : __ldg(call.offset + p);
    columns[k] = call.order == nullptr || !there ? p : __ldg(call.order + p);
  }
  WaitForPrevious();  // what x is made by
#pragma unroll
  for (int k = 0; k < 2 * kEach; ++k) {
    values[k] = position(k) < call.in_features ? static_cast<float>(x[columns[k]]) : 0.0f;
  }
  uint32_t largest[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < 2 * kEach; ++k) {
    dot = fmaf(values[k], offsets[k], dot);
    values[k] = __fmul_rn(values[k], scales[k]);
    largest[k / kEach] = max(largest[k / kEach], __float_as_uint(values[k]) & 0x7fffffffu);
  }
  ByteScale scale[2];
#pragma unroll
  for (int s = 0; s < 2; ++s) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      largest[s] = max(largest[s], __shfl_xor_sync(0xffffffffu, largest[s], distance));
    }
    scale[s] = ByteScaleOf(largest[s]);
    factors[s] = scale[s].down;
  }
#pragma unroll
  for (int k = 0; k < 2 * kEach; ++k) {
    if (first + k / kEach * kByteXWarps >= call.num_strips) continue;
    const float value = scale[k / kEach].up == 0.0f ? 0.0f : values[k] * scale[k / kEach].up;
    const int integer = __float2int_rn(value);
    keep(0, position(k), integer);
    if constexpr (sizeof(T) == 4) {
      keep(1, position(k), __float2int_rn((value - static_cast<float>(integer)) * 0x1p15f));
    }
  }
}
// Of the second row of a token's integers, relative to the first.
inline constexpr float kByteSecondRow = 0x1p-15f;

template <typename Keep>
__device__ inline void MakeByteStrips(const VptqBytePrepareCall& call, int64_t token, int first,
                                      float& dot, float (&factors)[2], const Keep& keep) {
  if (call.dtype == DType::kF16) {
    MakeByteStripsOf<__half>(call, token, first, dot, factors, keep);
  } else if (call.dtype == DType::kBF16) {
    MakeByteStripsOf<__nv_bfloat16>(call, token, first, dot, factors, keep);
  } else {
    MakeByteStripsOf<float>(call, token, first, dot, factors, keep);
  }
}

// Both bytes of an integer to their planes, `stride` apart.
__device__ inline void StoreByteX(int8_t* to, int64_t stride, int integer) {
  const int hi = (integer + 128) >> 8;
  to[0] = static_cast<int8_t>(hi);
  to[stride] = static_cast<int8_t>(integer - hi * 256);
}

// Sum of lanes' parts of the dot, in every lane.
__device__ inline float AddLanes(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

}  // namespace thinwire::vptq
