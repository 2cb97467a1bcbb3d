// A warp's queue of weights in shared memory. Private to kernels/coded_linear.
//
// Two places: with three and four, steps of a 70B shape took longer (README).
#pragma once

#include "kernels/coded_linear/coded_linear_cuda.h"
#include "kernels/coded_linear/linear_operands.cuh"

namespace thinwire {

// Of kDepth places. A place has its chunk of the pair's codes, step after step, in a step the
// blocks of one panel, then those of the other, in pieces of 16 bytes; where a chunk has one part,
// then the rows' scales, and their zeros.
template <int kBits, bool kOnePart>
struct LinearQueue {
  using B = Block<kBits>;
  static constexpr int kSteps = kChunkColumns / (kStepBlocks * B::kColumns);
  static constexpr int kStepPieces = kStepBlocks * B::kBytes / 16;  // of a panel
  static constexpr int kCopies = kSteps * 2 * kStepPieces / 32;     // by each lane
  static constexpr int kCodeBytes = kCopies * 512;
  static constexpr int kPlaceBytes = kCodeBytes + (kOnePart ? 96 : 0);
  static constexpr int kDepth = kBits == 3 ? 3 : 2;
  static constexpr int kWarpBytes = kDepth * kPlaceBytes;

  // Where a piece lies: blocks of 64 bytes two apart would meet in a bank. 32 pieces on, 32 on.
  __device__ static int PlaceOf(int piece) {
    return B::kBytes == 64 ? piece ^ (piece >> 3 & 1) << 1 : piece;
  }

  // A lane's four rows of its block in each step, from a place of a warp's queue.
  __device__ static void Take(const unsigned char* place, int lane, B (&blocks)[kSteps]) {
    const int g = lane / 4, t = lane % 4, quarter = g % 4;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      // 16 pieces of a step and panel: those of a step are 32 on.
      constexpr bool kEven = kStepPieces == 16;
      const int first = (2 * (kEven ? 0 : s) + g / 4) * kStepPieces + t * (B::kBytes / 16);
#pragma unroll
      for (int i = 0; i < B::kPieces; ++i) {
        blocks[s].pieces[i] = reinterpret_cast<const uint4*>(
            place)[PlaceOf(first + B::PieceAt(i, quarter) / 16) + (kEven ? 32 * s : 0)];
      }
      blocks[s].Prepare(quarter);
    }
  }
};

}  // namespace thinwire
