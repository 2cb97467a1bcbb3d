// How codes of weights become operands of the matrix instructions. Private to kernels/coded_linear.
//
// Each lane has four rows of a block, as one word a row (3 bits: and one of high bits). Rows 0 and
// 1 make operand a of one instruction, rows 2 and 3 that of another. As an fp16 a code c is the
// subnormal c * 2^-24, or 2^e as much at bit e; the matrix units multiply those exactly. As a bf16
// it is 128 + c, whose constant comes off with the zero (8 bits: two halves, 128 and 2048 + 16 c).
#pragma once

#include <cstdint>

#include "kernels/core/cuda_math.cuh"

namespace thinwire {

__device__ inline uint4 LoadStream16(const uint8_t* from) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

__device__ inline uint32_t EvenHalves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ inline uint32_t OddHalves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

__device__ inline uint32_t WordOf(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int kBits>
struct Block;

template <>
struct Block<4> {
  static constexpr int kColumns = 8;
  static constexpr int kBytes = 64;
  static constexpr int kFloatSteps = 2;  // matrix instructions of 16 columns
  static constexpr int kByteSteps = 1;   // of 32
  uint4 rows;

  __device__ void Load(const uint8_t* block, int quarter) {
    rows = LoadStream16(block + 16 * quarter);
  }
  // Columns (0, 2), (4, 6), (1, 3), (5, 7).
  template <typename T>
  __device__ uint32_t Pair(int row, int step, int half, int) const {
    const uint32_t codes = WordOf(rows, row) >> (8 * step + 4 * half) & 0x000f000fu;
    return sizeof(T) == 2 && __is_same(T, __half) ? codes : codes | 0x43004300u;
  }
  template <typename T>
  __device__ static constexpr float Unit() {
    return __is_same(T, __half) ? 0x1p24f : 1.0f;
  }
  template <typename T>
  __device__ static constexpr float Constant() {
    return __is_same(T, __half) ? 0.0f : 128.0f;
  }
  // x: the block's 8 values in 4 words.
  __device__ static void X(const uint32_t* x, int step, uint32_t& b0, uint32_t& b1) {
    b0 = step == 0 ? EvenHalves(x[0], x[1]) : OddHalves(x[0], x[1]);
    b1 = step == 0 ? EvenHalves(x[2], x[3]) : OddHalves(x[2], x[3]);
  }
  __device__ uint32_t Bytes(int row, int, int half, int) const {
    return WordOf(rows, row) >> (4 * half) & 0x0f0f0f0fu;
  }
};

template <>
struct Block<3> {
  static constexpr int kColumns = 16;
  static constexpr int kBytes = 96;
  static constexpr int kFloatSteps = 4;
  static constexpr int kByteSteps = 2;
  uint4 rows;  // two low bits
  uint4 high;  // of these rows and, in the other nibble, of those 8 before or after

  __device__ void Load(const uint8_t* block, int quarter) {
    rows = LoadStream16(block + 16 * quarter);
    high = __ldg(reinterpret_cast<const uint4*>(block + 64 + 16 * (quarter % 2)));
  }
  // nibble: 0 for rows 0 to 7 of the panel, 4 for rows 8 to 15. Columns 4 step + (0, 2), (1, 3).
  template <typename T>
  __device__ uint32_t Pair(int row, int step, int half, int nibble) const {
    const uint32_t low = WordOf(rows, row) >> (8 * half) & 0x00ff00ffu;
    const uint32_t high_bits = WordOf(high, row) >> (8 * half + nibble) & 0x000f000fu;
    if constexpr (__is_same(T, __half)) {  // at bit 6
      return (low << (6 - 2 * step) & 0x00c000c0u) | (high_bits << (8 - step) & 0x01000100u);
    } else {
      return (low >> (2 * step) & 0x00030003u) | (high_bits << 2 >> step & 0x00040004u) |
             0x43004300u;
    }
  }
  template <typename T>
  __device__ static constexpr float Unit() {
    return __is_same(T, __half) ? 0x1p18f : 1.0f;
  }
  template <typename T>
  __device__ static constexpr float Constant() {
    return __is_same(T, __half) ? 0.0f : 128.0f;
  }
  __device__ static void X(const uint32_t* x, int step, uint32_t& b0, uint32_t& b1) {
    b0 = EvenHalves(x[2 * step], x[2 * step + 1]);
    b1 = OddHalves(x[2 * step], x[2 * step + 1]);
  }
  __device__ uint32_t Bytes(int row, int step, int half, int nibble) const {
    const int j = 2 * step + half;
    return (WordOf(rows, row) >> (2 * j) & 0x03030303u) |
           (WordOf(high, row) >> nibble << 2 >> j & 0x04040404u);
  }
};

template <>
struct Block<8> {
  static constexpr int kColumns = 4;
  static constexpr int kBytes = 64;
  static constexpr int kFloatSteps = 1;
  static constexpr int kByteSteps = 1;
  uint4 rows;

  __device__ void Load(const uint8_t* block, int quarter) {
    rows = LoadStream16(block + 16 * quarter);
  }
  // Columns (0, 2), (1, 3).
  template <typename T>
  __device__ uint32_t Pair(int row, int, int half, int) const {
    return (WordOf(rows, row) ^ 0x80808080u) >> (8 * half) & 0x00ff00ffu;
  }
  template <typename T>
  __device__ static constexpr float Unit() {
    return __is_same(T, __half) ? 0x1p24f : 1.0f;
  }
  template <typename T>
  __device__ static constexpr float Constant() {
    return __is_same(T, __half) ? 0.0f : 2176.0f;
  }
  __device__ static void X(const uint32_t* x, int, uint32_t& b0, uint32_t& b1) {
    b0 = EvenHalves(x[0], x[1]);
    b1 = OddHalves(x[0], x[1]);
  }
  __device__ uint32_t Bytes(int row, int, int half, int) const {
    return half == 0 ? WordOf(rows, row) ^ 0x80808080u : 0u;
  }
};

// One code of a block in memory, as coded_layout.h lays it.
__device__ inline int CodeOf(const uint8_t* block, int bits, int row, int column) {
  const int at = 4 * row + column % 4, j = column / 4;
  if (bits == 4) return block[at] >> (4 * j) & 15;
  if (bits == 8) return block[at] ^ 128;
  return (block[at] >> (2 * j) & 3) | (block[64 + at % 32] >> (j + at / 32 * 4) & 1) << 2;
}

}  // namespace thinwire
