// For CUDA kernels: elements of the float dtypes, and the matrix instructions of a warp.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "kernels/core/dtype.h"

namespace thinwire {

// Element i of fp32, fp16 or bf16.
__device__ inline float LoadFloat(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF16) return __half2float(static_cast<const __half*>(data)[i]);
  if (dtype == DType::kBF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

// What StoreFloat and LoadFloat make of it.
__device__ inline float RoundedTo(DType dtype, float value) {
  if (dtype == DType::kF16) return __half2float(__float2half_rn(value));
  if (dtype == DType::kBF16) return __bfloat162float(__float2bfloat16_rn(value));
  return value;
}

// Rounds to nearest, ties to even.
__device__ inline void StoreFloat(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::kF16) {
    static_cast<__half*>(data)[i] = __float2half_rn(value);
  } else if (dtype == DType::kBF16) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(data)[i] = value;
  }
}

template <typename To, typename From>
__device__ inline To BitCast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Two floats as a pair of T, the first in the low half.
template <typename T>
__device__ inline uint32_t PackPair(float low, float high);
template <>
__device__ inline uint32_t PackPair<__half>(float low, float high) {
  return BitCast<uint32_t>(__floats2half2_rn(low, high));
}
template <>
__device__ inline uint32_t PackPair<__nv_bfloat16>(float low, float high) {
  return BitCast<uint32_t>(__floats2bfloat162_rn(low, high));
}

template <typename T>
__device__ inline float2 UnpackPair(uint32_t pair);
template <>
__device__ inline float2 UnpackPair<__half>(uint32_t pair) {
  return __half22float2(BitCast<__half2>(pair));
}
template <>
__device__ inline float2 UnpackPair<__nv_bfloat16>(uint32_t pair) {
  return __bfloat1622float2(BitCast<__nv_bfloat162>(pair));
}

// c += a b for a of [16, 16], b of [16, 8] and c of [16, 8]. Lane 4 g + t holds of a the pairs of
// columns (2 t, 2 t + 1) of rows g and g + 8, then those 8 columns on; of b the pairs of rows
// (2 t, 2 t + 1) of column g, then those 8 rows on; of c columns 2 t and 2 t + 1 of row g, then of
// row g + 8.
template <typename T>
__device__ inline void Mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void Mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void Mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same for bytes: a of [16, 32] unsigned, b of [32, 8] unsigned; four columns of a, four rows
// of b where the floats have two.
__device__ inline void MmaBytes(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2^x, to 2 units in the last place.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace thinwire
