// Shapes of the blocks of threads of tables' kernels. Private to kernels/vptq_linear.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/vptq_linear/vptq_linear_cuda.h"

namespace thinwire::vptq {

inline constexpr int kQuadOutputs = kVptqQuadRows * kVptqRow;  // 32

// For up to 8 kTiles rows of x. Few warps have many registers each: x fills half of them.
template <int kTiles>
struct Block {
  static constexpr int kWarps = kTiles == 1 ? 16 : 8;
  static constexpr int kThreads = 32 * kWarps;
  // Codes whose centroids are on their way while others are multiplied.
  static constexpr int kAhead = kTiles == 2 ? 4 : 3;
  // Halves of units that a strip has.
  static constexpr int kHalves = 2 * kVptqStripUnits;
};
// Of one round at least, of about all of them with one row of x.
inline constexpr int kFewestSumBytes = 16 * 1024;
inline constexpr int kMostSumBytes = 64 * 1024;
static_assert(Block<1>::kWarps * 8 * kQuadOutputs * 4 <= kFewestSumBytes);
static_assert(Block<2>::kWarps * 16 * kQuadOutputs * 4 <= kFewestSumBytes);
// Shared memory of the kernels beside what is counted here.
inline constexpr int kStaticBytes = 256;

// Calls f(kTiles).
template <typename F>
auto WithTiles(const VptqTablesCall& call, const F& f) {
  const int64_t rows = int64_t{call.result.num_tokens} * call.planes;
  return rows <= 8 ? f(std::integral_constant<int, 1>()) : f(std::integral_constant<int, 2>());
}

// A place times 2^kShift is an address. Small books lie 8 times, side by side.
__host__ __device__ constexpr int PlaceShift(int bits) { return bits == 8 ? 7 : 4; }

// Bytes of all tables but the centroids' third places.
__host__ __device__ constexpr int TableBytes(int index_bits, int residual_bits) {
  return ((index_bits == 12 ? 2 : 1) << (index_bits + PlaceShift(index_bits))) +
         (residual_bits == 0 ? 0 : 1 << (residual_bits + PlaceShift(residual_bits)));
}

}  // namespace thinwire::vptq
