// Products of codes of weights and x by matrix instructions: x in fp16, bf16 or codes itself.
// Private to kernels/coded_linear.
#pragma once

#include <cstdint>

#include "kernels/coded_linear/linear_operands.cuh"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {

// What floats and codes of activations differ in. T: __half, __nv_bfloat16 or uint8_t.
template <int kBits, typename T>
struct Products {
  using B = Block<kBits>;
  using Sum = float;
  static constexpr bool kIntegers = false;
  static constexpr int kXWords = B::kColumns / 2;  // of a block
  static constexpr int kProducts = B::kLevels;
  // Codes of all levels at one place, or each level's kLevelBits above the one before.
  static constexpr bool kAscending = __is_same(T, __half) && kProducts > 1;
  static constexpr uint32_t kOnes = __is_same(T, __half) ? 0x3c003c00u : 0x3f803f80u;

  __device__ static void Operand(const B& block, int rows, int level, uint32_t (&a)[4]) {
    a[0] = block.template Pair<T>(rows, level, 0);
    a[1] = block.template Pair<T>(rows + 1, level, 0);
    a[2] = block.template Pair<T>(rows, level, 1);
    a[3] = block.template Pair<T>(rows + 1, level, 1);
  }
  __device__ static void X(const uint32_t (&x)[kXWords], int level, uint32_t& b0, uint32_t& b1) {
    b0 = EvenHalves(x[2 * level], x[2 * level + 1]);
    b1 = OddHalves(x[2 * level], x[2 * level + 1]);
  }
  __device__ static void MultiplyOne(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    if constexpr (kBits == 8 && !__is_same(T, __half)) {
      uint32_t low[4], high[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        low[i] = (a[i] & 0x000f000fu) | 0x43004300u;
        high[i] = (a[i] >> 4 & 0x000f000fu) | 0x45004500u;
      }
      Mma<T>(c, low, b0, b1);
      Mma<T>(c, high, b0, b1);
    } else {
      Mma<T>(c, a, b0, b1);
    }
  }
  __device__ static void AddUp(Sum (&c)[4], uint32_t b0, uint32_t b1) {
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    Mma<T>(c, ones, b0, b1);
  }
  __device__ static float Value(Sum sum, Sum x_sum, int zero) {
    constexpr float kUnit = __is_same(T, __half) ? 0x1p24f : 1.0f;
    constexpr float kConstant = __is_same(T, __half) ? 0.0f : kBits == 8 ? 2176.0f : 128.0f;
    return sum * kUnit - (static_cast<float>(zero) + kConstant) * x_sum;
  }
};

template <int kBits>
struct Products<kBits, uint8_t> {
  using B = Block<kBits>;
  using Sum = int32_t;
  static constexpr bool kIntegers = true;
  static constexpr int kXWords = B::kColumns / 4;
  static constexpr int kProducts = B::kByteLevels;
  static constexpr bool kAscending = false;

  __device__ static void Operand(const B& block, int rows, int level, uint32_t (&a)[4]) {
    a[0] = block.Bytes(rows, level, 0);
    a[1] = block.Bytes(rows + 1, level, 0);
    a[2] = block.Bytes(rows, level, 1);
    a[3] = block.Bytes(rows + 1, level, 1);
  }
  __device__ static void X(const uint32_t (&x)[kXWords], int level, uint32_t& b0, uint32_t& b1) {
    b0 = x[kXWords == 1 ? 0 : 2 * level];
    b1 = kXWords == 1 ? 0u : x[kXWords == 1 ? 0 : 2 * level + 1];
  }
  __device__ static void MultiplyOne(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                     uint32_t b1) {
    MmaBytes(c, a, b0, b1);
  }
  __device__ static void AddUp(Sum (&c)[4], uint32_t b0, uint32_t b1) {
    const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
    MmaBytes(c, ones, b0, b1);
  }
  __device__ static float Value(Sum sum, Sum x_sum, int zero) {
    return static_cast<float>(sum - zero * x_sum);
  }
};

// Steps [kBegin, kEnd): c = codes times x. Levels from the highest down, each time brought to the
// place of the next, so that no code is shifted; c is zero before.
template <typename P, int kBegin, int kEnd, int kSteps, int kTiles>
__device__ inline void Multiply(const typename P::B (&blocks)[kSteps],
                                const uint32_t (&x)[kTiles][kSteps][P::kProducts][2],
                                typename P::Sum (&c)[2][kTiles][4]) {
#pragma unroll
  for (int level = P::kProducts - 1; level >= 0; --level) {
#pragma unroll
    for (int s = kBegin; s < kEnd; ++s) {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        uint32_t a[4];
        P::Operand(blocks[s], 2 * q, level, a);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          P::MultiplyOne(c[q][n], a, x[n][s][level][0], x[n][s][level][1]);
        }
      }
    }
    if constexpr (P::kAscending) {
      if (level > 0) {
        constexpr float kDown = 1.0f / (1 << P::B::kLevelBits);
#pragma unroll
        for (int q = 0; q < 2; ++q) {
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) c[q][n][i] *= kDown;
          }
        }
      }
    }
  }
}

template <int kWords>
__device__ inline void LoadX(const uint32_t* from, bool there, uint32_t (&to)[kWords]) {
  if constexpr (kWords % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const uint4 v =
          there ? __ldg(reinterpret_cast<const uint4*>(from) + i) : make_uint4(0, 0, 0, 0);
      to[4 * i] = v.x;
      to[4 * i + 1] = v.y;
      to[4 * i + 2] = v.z;
      to[4 * i + 3] = v.w;
    }
  } else if constexpr (kWords == 2) {
    const uint2 v = there ? __ldg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
    to[0] = v.x;
    to[1] = v.y;
  } else {
    to[0] = there ? __ldg(from) : 0u;
  }
}

}  // namespace thinwire
