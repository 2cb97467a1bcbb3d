// What the CUDA kernels of VPTQ linears with byte books (byte_book.h) take: plain structs of device
// pointers. Private to kernels/vptq_linear.
//
// A centroid is 8 bytes, and every block of threads keeps all of them in shared memory, where 16
// can be read a cycle if they are in different pairs of banks: books of 2^8 lie there 16 times,
// once in the banks of each of 16 lanes, those of 2^12 four times, each time in other banks, and a
// code has two bits more, which say where to fetch, chosen when codes are copied so that the 16
// lanes of a cycle hardly meet.
//
// x becomes integers of 16 bits: of each strip of columns the largest power of two times x that
// fits, as two planes of bytes, hi and lo. Sums of bytes' products are exact; planes, books and
// strips are put together in fp32. fp32 numbers have two such rows, the second of what the first
// leaves.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/vptq_linear/vptq_linear_cuda.h"

namespace thinwire {

// A warp takes 8 vector rows, a group, by 64 columns, a chunk: 16 codes a lane. Lane 4 g + t has
// columns [16 t, 16 t + 16) of vector row g.
inline constexpr int kVptqByteRows = 8;
inline constexpr int kVptqByteCodes = 16;
inline constexpr int kVptqByteChunk = 64;
// Columns that have one power of two and whose products are one integer; strips' sums are added to
// those of a part, then part after part.
inline constexpr int kVptqByteStrip = 256;
inline constexpr int kVptqBytePart = 8;
// Columns are padded to whole strips.
constexpr int64_t VptqByteStrips(int64_t num_columns) {
  return (num_columns + kVptqByteStrip - 1) / kVptqByteStrip;
}

__host__ __device__ constexpr int VptqBytePlaceBits(int index_bits) {
  return index_bits == 12 ? 14 : index_bits;
}
// Bytes of a centroid's number that are turned, in copy `copy` of 2^12 of them: another number of
// 1 to 15 for each of the copies 1, 2, 3, dependent on the bits above the lowest 4.
__host__ __device__ constexpr int VptqByteTurn(int index, int copy) {
  const int high = index >> 4;
  const int first = 1 + high % 15;
  int second = 1 + high / 15 % 14;
  if (second >= first) ++second;
  const int low = first < second ? first : second, up = first < second ? second : first;
  int third = 1 + (7 * high + high / 16) % 13;
  if (third >= low) ++third;
  if (third >= up) ++third;
  return copy == 0 ? 0 : copy == 1 ? first : copy == 2 ? second : third;
}
__host__ __device__ constexpr int VptqBytePlace(int index, int copy) {
  return copy * 4096 + (index ^ VptqByteTurn(index, copy));
}
// The centroid at a place.
__host__ __device__ constexpr int VptqByteIndexAt(int index_bits, int place) {
  if (index_bits != 12) return place;
  return place % 4096 ^ VptqByteTurn(place % 4096, place / 4096);
}
// 32-bit words of a lane's codes of a chunk: first those of places, then those of residuals.
__host__ __device__ constexpr int VptqByteWords(int index_bits, int residual_bits) {
  return (VptqBytePlaceBits(index_bits) + residual_bits) * kVptqByteCodes / 32;
}

// Whether there are kernels for byte books of these sizes and length.
bool HasVptqByteTables(int length, int index_bits, int residual_bits, int64_t shared_memory_bytes);

// Codes as the host has them into chunks: uint32 [num_groups, num_chunks, words of a lane, 32
// lanes].
struct VptqByteArrangeCall {
  const uint32_t* codes;
  int64_t row_words;
  int32_t index_bits;
  int32_t residual_bits;
  int32_t num_vectors;  // rows of the codes
  int32_t num_columns;
  int32_t num_groups;
  int32_t num_chunks;  // of whole strips
  uint32_t* to;
};
cudaError_t LaunchVptqByteArrange(const VptqByteArrangeCall& call, cudaStream_t stream);

// x by position times the scales as rows of integers, and the sum of x times the offsets. What is
// no finite number makes its token's results NaN.
struct VptqBytePrepareCall {
  const void* x;
  int64_t x_stride;
  DType dtype;
  int32_t num_tokens;
  int32_t in_features;
  const int32_t* order;  // null: as they are
  const float* scale;    // null: ones
  const float* offset;   // null: zeros
  int32_t num_strips;
  int8_t* to;      // [num_tokens * rows of a token, 2 (hi, lo), num_strips * kVptqByteStrip]
  float* factors;  // [num_tokens * rows of a token, num_strips]: x is integers times them
  float* dots;     // [num_tokens]
  bool early;      // begins while the kernel ahead still runs
};
constexpr int VptqByteRowsOfToken(DType dtype) { return dtype == DType::kF32 ? 2 : 1; }
cudaError_t LaunchVptqBytePrepare(const VptqBytePrepareCall& call, cudaStream_t stream);

struct VptqBytesCall {
  const uint32_t* codes;
  const int8_t* centroids;  // [2^index_bits, 8]
  const int8_t* residual;   // [2^residual_bits, 8], unless residual_bits is 0
  float scales[2][8];       // of the components of both books
  int32_t index_bits;
  int32_t residual_bits;
  int32_t length;
  int32_t skip;
  int32_t num_groups;
  int32_t num_strips;
  int32_t rows_of_token;
  int32_t num_blocks;
  int32_t shared_memory_bytes;  // the most that a block can have
  bool early_launches;
  VptqResult result;            // splits and partials are of parts
  VptqBytePrepareCall prepare;  // to, factors and dots are not needed where makes_x

  // Set by PlanVptqBytes, as is result.splits.
  bool makes_x;
  int32_t rows_at_once;  // of x in a pass over the weights: 1, 8 or 16
  int32_t rounds_held;
  int32_t shared_bytes;
};
// makes_x: every block makes x itself, to the same bits as LaunchVptqBytePrepare: of one token of
// 16 bits, if a block has all parts of a row.
void PlanVptqBytes(VptqBytesCall& call);
// Of a call with a plan. Adds up splits, too.
cudaError_t LaunchVptqBytes(const VptqBytesCall& call, cudaStream_t stream);

}  // namespace thinwire
