// What the CUDA kernels of coded linears take: plain structs of device pointers. Private to
// kernels/coded_linear.
//
// Weights lie on the device as on the host (coded_layout.h; HighBitsOnDevice): 16 rows of a panel
// are what a matrix instruction takes. Kernels go through a pair of panels in steps of four blocks;
// lane 4 g + t of a warp takes block t of rows 4 (g % 4) to 4 (g % 4) + 3 of panel g / 4 of the
// pair: 16 bytes. Steps end where a part (a group of the weights, or a segment of the codes) ends,
// so that the last step of a part may have fewer columns; x is then first rearranged into whole
// steps, zeros between.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/core/dtype.h"

namespace thinwire {

inline constexpr int kStepBlocks = 4;

// Columns [begin, end) of a step belong to its part; column c is column `column` + c of x.
struct LinearStep {
  int32_t block;  // of a panel
  int32_t part;
  int32_t column;
  int32_t begin;
  int32_t end;
};

// Steps with one group and one factor.
struct LinearPart {
  int32_t group;
  float factor;
};

struct CodedLinearCall {
  // Weights.
  const uint8_t* codes;  // [num_panels, num_blocks]
  const uint16_t* scales;
  const uint8_t* zeros;
  int32_t bits;
  int32_t out_features;
  int32_t num_panels;
  int32_t num_blocks;  // of a panel
  int32_t num_groups;
  const LinearStep* steps;
  const LinearPart* parts;
  int32_t num_steps;
  int32_t num_parts;
  // Where all parts have as many steps, and full ones, which then are a panel's blocks in order;
  // else 0.
  int32_t steps_per_part;
  bool parts_are_groups;  // and all factors 1
  // Activations, whole steps: fp16 or bf16 [num_tokens * planes, num_steps * columns of a step], or
  // uint8 codes. Values are the sums of their planes.
  const void* x;
  int64_t x_stride;
  DType x_dtype;
  int32_t num_tokens;
  int32_t planes;
  const float* gains;   // [num_tokens], null: ones; for codes
  const float* offset;  // [out_features], null: zeros; for codes
  const float* bias;    // [out_features], null: zeros
  void* y;
  int64_t y_stride;
  DType y_dtype;
  // Few tokens: the rows are those of a gate, then as many of what it lets through, 16 k each; y is
  // [num_tokens, out_features / 2]. Pairs of panels have one of either.
  bool gated;
  ActivationKind gate;
  // Few tokens: blocks of threads that share a row's columns, chunks of columns and warps that each
  // has for a pair of panels (warps_each divides kLinearWarps), and most blocks at a time.
  int32_t splits;
  int32_t chunks_each;
  int32_t warps_each;
  int32_t num_blocks_of_threads;
  bool early_launches;  // kernels begin before the one ahead of them ends
  // Clusters of `splits` blocks that run at a time, whose blocks add their sums up in shared
  // memory; 0: none.
  int32_t clusters;
  bool whole_rows;     // for LaunchWholeRows instead
  int32_t kept_pairs;  // of panels, whose sums a block of a cluster keeps; set by launches
  // [splits, num_tokens * planes, 16 num_panels], null: neither splits nor planes, or clusters
  float* partials;
};

// Most tokens times planes of floats that one pass over the weights takes.
inline constexpr int kTokensPerPass = 16;
// Warps of a block of threads for few tokens, and the columns of a warp's whole steps.
inline constexpr int kLinearWarps = 16;
inline constexpr int kChunkColumns = 128;

// The byte of high bits of 3-bit codes (coded_layout.h) as it lies on a device: of columns 4 j + k,
// bit 2 j is that of rows 0 to 7, bit 2 j + 1 that of rows 8 to 15. So all columns' bits come to
// their places beside the low ones with one shift.
constexpr uint8_t HighBitsOnDevice(uint8_t byte) {
  int spread = 0;
  for (int bit = 0; bit < 8; ++bit) spread |= (byte >> bit & 1) << (bit % 4 * 2 + bit / 4);
  return static_cast<uint8_t>(spread);
}

// What early_launches may be: whether these kernels, as this GPU runs them, wait for the one ahead.
bool FewTokensCanStartEarly();
// CodedLinearCall::clusters of clusters of `size` blocks, 0: this GPU has none of them.
int MostLinearClusters(int size);
cudaError_t LaunchFloatLinear(const CodedLinearCall& call, cudaStream_t stream);
cudaError_t LaunchIntegerLinear(const CodedLinearCall& call, cudaStream_t stream);
// Whether LaunchWholeRows takes `call` with so many tokens: a row is shared, by Divide, its parts
// are groups of whole chunks, x is fp16 or bf16 of 8 tokens at most, all of which fits beside the
// rest in a block's shared memory of most_shared_bytes.
bool HasWholeRows(const CodedLinearCall& call, DType x_dtype, int64_t num_tokens,
                  int most_shared_bytes);
// As LaunchFloatLinear, with the same bits, in blocks that share no rows: without clusters and
// partial results.
cudaError_t LaunchWholeRows(const CodedLinearCall& call, cudaStream_t stream);

// Codes of 3 or 4 bits with zeros to 127 times codes of many tokens, rows [first_row, first_row +
// num_rows) of the weights; first_row is a multiple of 16.
struct ManyCodesCall {
  CodedLinearCall linear;  // x in whole steps
  bool one_part;           // all pieces have kChunkColumns columns
  int32_t columns;         // of whole steps
  // For each 32 columns (one_part: kChunkColumns) the part of the piece after them, -1: theirs goes
  // on. A piece's sum is at most kMostPieceSum; the first one's part is 0.
  const int32_t* next_parts;
  int32_t first_row;
  int32_t num_rows;
  int8_t* widened;  // [num_rows rounded up to 16, columns]: gets code - zero
};
inline constexpr int64_t kMostPieceSum = int64_t{1} << 24;  // integers up to here are floats
inline constexpr int kMostSignedZero = 127;
// Whether this build has it for such GPUs.
bool HasManyCodes(int compute_capability_major);
cudaError_t LaunchManyCodes(const ManyCodesCall& call, cudaStream_t stream);

// x as whole steps. fp32 becomes three planes of bf16 that add up to it; fp16, bf16 and uint8 stay.
struct ArrangeCall {
  const void* x;
  int64_t x_stride;  // elements
  DType dtype;
  int32_t num_tokens;
  const LinearStep* steps;
  int32_t num_steps;
  int32_t step_columns;
  void* to;  // [num_tokens * planes, num_steps * step_columns]
};
cudaError_t LaunchArrange(const ArrangeCall& call, cudaStream_t stream);

// Rows [first_row, first_row + num_rows) of the weights as fp32, fp16 or bf16 [num_rows,
// in_features]; first_row is a multiple of 16.
struct WidenCall {
  CodedLinearCall weights;  // its weights and steps
  int32_t first_row;
  int32_t num_rows;
  int64_t in_features;
  DType dtype;
  void* to;
};
cudaError_t LaunchWiden(const WidenCall& call, cudaStream_t stream);

}  // namespace thinwire
