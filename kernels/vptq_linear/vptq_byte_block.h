// Shapes of the blocks of threads of byte books' kernels. Private to kernels/vptq_linear.
#pragma once

#include <type_traits>

#include "kernels/vptq_linear/vptq_bytes_cuda.h"

namespace thinwire::vptq {

inline constexpr int kByteOutputs = kVptqByteRows * 8;  // of a group: 64

// Warps that share a token's x; the sum of x times the offsets is added in an order that depends on
// it.
inline constexpr int kByteXWarps = 16;

// kTiles: 0 for one row of x, else four rows each.
template <int kTiles>
struct ByteBlock {
  static constexpr int kWarps = kTiles == 4 ? 8 : 16;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = kTiles == 0 ? 1 : 4 * kTiles;
  static constexpr int kStripsOfWarp = kTiles == 0 ? 2 : 1;
  static constexpr int kStrips = kWarps * kStripsOfWarp;
  static constexpr int kParts = kStrips / kVptqBytePart;
  static constexpr int kSums = kRows * kByteOutputs;  // of a strip
  static constexpr int kRoundBytes = kStrips * kSums * 4;
};
static_assert(ByteBlock<0>::kWarps == kByteXWarps);
// What x of one row is made in, before sums are.
static_assert(ByteBlock<0>::kRoundBytes >= 8 * 1024);
inline constexpr int kByteXBytes = ByteBlock<0>::kStrips * kVptqByteStrip * 2;

// Calls f(kTiles).
template <typename F>
auto WithByteTiles(int rows_at_once, const F& f) {
  if (rows_at_once == 1) return f(std::integral_constant<int, 0>());
  if (rows_at_once == 8) return f(std::integral_constant<int, 2>());
  return f(std::integral_constant<int, 4>());
}

// Small books lie 16 times side by side, large ones four times, one after another.
__host__ __device__ constexpr int ByteBookBytes(int bits) {
  return bits == 0 ? 0 : bits == 8 ? 256 * 128 : 4 * 32768;
}
__host__ __device__ constexpr int ByteTableBytes(int index_bits, int residual_bits) {
  return ByteBookBytes(index_bits) + ByteBookBytes(residual_bits);
}

}  // namespace thinwire::vptq
