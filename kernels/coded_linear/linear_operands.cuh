// How codes of weights become operands of the matrix instructions. Private to kernels/coded_linear.
//
// Each lane has four rows of a block, as one word a row (3 bits: and one of high bits). Rows 0 and
// 1 make operand a of one instruction, rows 2 and 3 that of another. As an fp16 a code c is the
// subnormal c * 2^-24, or 2^e as much at bit e; the matrix units multiply those exactly. As a bf16
// it is 128 + c, whose constant comes off with the zero (8 bits: two halves, 128 and 2048 + 16 c).
#pragma once

#include <cstdint>

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/core/cuda_math.cuh"

namespace thinwire {

__device__ inline uint32_t EvenHalves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ inline uint32_t OddHalves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

__device__ inline uint32_t WordOf(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// What a lane has of a block: `pieces` of 16 bytes at PieceAt(i, quarter), for rows 4 quarter to
// 4 quarter + 3. Pair: an operand of fp16 or bf16 with columns 4 level + (0, 2) or, half 1, (1, 3)
// of a row; as fp16 the codes lie kLevelBits * level bits up. Bytes: columns 8 level + 4 half + k.
template <int kBits>
struct Block;

template <>
struct Block<4> {
  static constexpr int kColumns = 8;
  static constexpr int kBytes = 64;
  static constexpr int kPieces = 1;
  static constexpr int kLevels = 2;  // matrix instructions of 16 columns, of floats
  static constexpr int kLevelBits = 4;
  static constexpr int kByteLevels = 1;  // of 32 columns, of bytes
  uint4 pieces[kPieces];

  __device__ static int PieceAt(int, int quarter) { return 16 * quarter; }
  __device__ void Prepare(int) {}
  template <typename T>
  __device__ uint32_t Pair(int row, int level, int half) const {
    const uint32_t w = WordOf(pieces[0], row);
    if constexpr (__is_same(T, __half)) {
      return (half == 0 ? w : w >> 8) & (level == 0 ? 0x000f000fu : 0x00f000f0u);
    } else {
      return (w >> (8 * half + 4 * level) & 0x000f000fu) | 0x43004300u;
    }
  }
  __device__ uint32_t Bytes(int row, int, int half) const {
    return WordOf(pieces[0], row) >> (4 * half) & 0x0f0f0f0fu;
  }
};

// High bits lie as HighBitsOnDevice says.
template <>
struct Block<3> {
  static constexpr int kColumns = 16;
  static constexpr int kBytes = 96;
  static constexpr int kPieces = 2;  // two low bits, high bits
  static constexpr int kLevels = 4;
  static constexpr int kLevelBits = 2;
  static constexpr int kByteLevels = 2;
  uint4 pieces[kPieces];

  __device__ static int PieceAt(int i, int quarter) {
    return i == 0 ? 16 * quarter : 64 + 16 * (quarter % 2);
  }
  __device__ void Prepare(int quarter) {
    const int shift = quarter / 2;
    pieces[1] = make_uint4(pieces[1].x >> shift, pieces[1].y >> shift, pieces[1].z >> shift,
                           pieces[1].w >> shift);
  }
  template <typename T>
  __device__ uint32_t Pair(int row, int level, int half) const {
    const uint32_t w = WordOf(pieces[0], row), high = WordOf(pieces[1], row);
    // Neighbouring levels overlap: even and odd ones go into words of their own.
    const uint32_t low = half == 0 ? w : w >> 8, above = half == 0 ? high << 2 : high >> 6;
    const uint32_t from_low = level % 2 == 0 ? 0x33333333u : 0xccccccccu;
    const uint32_t codes = (low & from_low) | (above & ~from_low);
    if constexpr (__is_same(T, __half)) {
      return codes & 0x00070007u << (2 * level);
    } else {
      return (codes >> (2 * level) & 0x00070007u) | 0x43004300u;
    }
  }
  __device__ uint32_t Bytes(int row, int level, int half) const {
    const int j = 2 * level + half;
    const uint32_t high = WordOf(pieces[1], row);
    return (WordOf(pieces[0], row) >> (2 * j) & 0x03030303u) |
           ((j == 0 ? high << 2 : high >> (2 * j - 2)) & 0x04040404u);
  }
};

template <>
struct Block<8> {
  static constexpr int kColumns = 4;
  static constexpr int kBytes = 64;
  static constexpr int kPieces = 1;
  static constexpr int kLevels = 1;
  static constexpr int kLevelBits = 8;
  static constexpr int kByteLevels = 1;
  uint4 pieces[kPieces];

  __device__ static int PieceAt(int, int quarter) { return 16 * quarter; }
  __device__ void Prepare(int) {}
  template <typename T>
  __device__ uint32_t Pair(int row, int, int half) const {
    return (WordOf(pieces[0], row) ^ 0x80808080u) >> (8 * half) & 0x00ff00ffu;
  }
  __device__ uint32_t Bytes(int row, int, int half) const {
    return half == 0 ? WordOf(pieces[0], row) ^ 0x80808080u : 0u;
  }
};

// One code of a block in a device's memory.
__device__ inline int CodeOf(const uint8_t* block, int bits, int row, int column) {
  const int at = 4 * row + column % 4, j = column / 4;
  if (bits == 4) return block[at] >> (4 * j) & 15;
  if (bits == 8) return block[at] ^ 128;
  return (block[at] >> (2 * j) & 3) | (block[64 + at % 32] >> (2 * j + at / 32) & 1) << 2;
}

}  // namespace thinwire
