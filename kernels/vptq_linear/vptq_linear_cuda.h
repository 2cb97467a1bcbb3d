// What the CUDA kernels of VPTQ linears take: plain structs of device pointers. Private to
// kernels/vptq_linear.
//
// Weights lie on a device in one of two ways. Tables: all centroids are fp16 rows of 8 elements, 16
// bytes, and every block of threads keeps them in shared memory, from where the matrix load
// instruction fetches 32 rows at any addresses as the operand of a matrix product. Codes are then
// in the kernels' order (VptqPlace). Else books and codes are the host's bytes.
//
// What bounds tables is banks of shared memory: 8 rows of 16 bytes a cycle if they are in different
// banks. Books of 2^8 lie there 8 times, once in the banks of each of 8 lanes. Books of 2^12 lie
// there twice, and as many of their centroids as there is room for a third time, each time in other
// banks (VptqOtherPlace, VptqThirdPlace), and a code has two bits more, which say where to fetch:
// chosen so that the 8 rows of a cycle meet as little as they can, 1.2 deep with all centroids
// three times and 1.3 with three quarters of them, instead of 2.6 on average. That costs 2 bits a
// vector of memory: 10 % of v8-k4096-r256, 17 % of v6-k4096.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/core/dtype.h"

namespace thinwire {

// A unit: the codes that a warp takes at a time, 32 a lane. They are of 4 vector rows, a quad.
inline constexpr int kVptqUnitColumns = 256;
inline constexpr int kVptqQuadRows = 4;
// Elements of a table's row.
inline constexpr int kVptqRow = 8;
// What one warp adds up of a row: a strip of columns. Strips' sums are added strip after strip to
// those of a part, then part after part.
inline constexpr int kVptqStripUnits = 2;
inline constexpr int kVptqPartStrips = 8;
// Bits of a place in the table of the centroids.
__host__ __device__ constexpr int VptqPlaceBits(int index_bits) {
  return index_bits == 12 ? 14 : index_bits;
}
__host__ __device__ constexpr int VptqTableCodeBits(int index_bits, int residual_bits) {
  return VptqPlaceBits(index_bits) + residual_bits;
}

// Where centroid `index` of 2^12 lies the second time, behind the first 2^12, and the third time,
// behind these: in other banks each time. Both are their own opposites.
__host__ __device__ constexpr int VptqOtherPlace(int index) {
  return index ^ (1 + (index >> 3) % 7);
}
__host__ __device__ constexpr int VptqThirdPlace(int index) {
  const int second = 1 + (index >> 3) % 7;
  const int third = 1 + (index >> 3) / 7 % 6;
  return index ^ (third < second ? third : third + 1);
}
// The centroid at a place.
__host__ __device__ constexpr int VptqIndexAt(int index_bits, int place) {
  if (index_bits != 12 || place < 4096) return place;
  return place < 8192 ? VptqOtherPlace(place - 4096) : VptqThirdPlace(place - 8192);
}
// How many of the centroids lie there a third time: what a block's shared memory has room for.
int NumVptqThirds(int index_bits, int residual_bits, int64_t shared_memory_bytes);

// Where a quad's code is in its unit: code `code` of lane `lane`. Lane 8 m + j has the address of
// row j of matrix m; matrices 0 and 1 are 8 columns of one vector row and the next, 2 and 3 the 8
// columns after these. Columns are dealt out so that a lane's operands of x for two codes of a row
// are 8 neighbours.
struct VptqPlace {
  int lane;
  int code;
};
__host__ __device__ constexpr VptqPlace PlaceOfVptqCode(int row, int column) {
  const int step = column / 32 * 2 + column / 4 % 2;
  const int matrix = row % 2 + 2 * (column / 2 % 2);
  return {8 * matrix + 2 * (column % 32 / 8) + column % 2, 2 * step + row / 2};
}

// Whether there are kernels that find these books in tables: 2^8 or 2^12 vectors of at most 8.
bool HasVptqTables(int length, int index_bits, int residual_bits, int64_t shared_memory_bytes);

// Codes as the host has them into units: uint32 [num_quads, num_units, bits of a code, 32 lanes].
struct VptqArrangeCall {
  const uint32_t* codes;
  int64_t row_words;
  int32_t index_bits;
  int32_t residual_bits;
  int32_t num_vectors;  // rows of the codes
  int32_t num_columns;
  int32_t num_quads;
  int32_t num_units;
  int32_t num_thirds;
  uint32_t* to;
};
cudaError_t LaunchVptqArrange(const VptqArrangeCall& call, cudaStream_t stream);

// x by position times the scales, and the sum of x times the offsets.
struct VptqPrepareCall {
  const void* x;
  int64_t x_stride;
  DType dtype;
  int32_t num_tokens;
  int32_t in_features;
  const int32_t* order;  // null: as they are
  const float* scale;    // null: ones
  const float* offset;   // null: zeros
  // 0: fp32 [num_tokens, to_stride]. Else fp16 [num_tokens * planes, to_stride] which, times
  // 2^(-11 plane), add up to x times a power of two, with zeros behind in_features.
  int32_t planes;
  int64_t to_stride;
  void* to;
  float book_factor;
  float* factors;  // [num_tokens]: what sums of planes and books are multiplied with; null: none
  float* dots;     // [num_tokens]
  bool early;      // begins while the kernel ahead still runs
};
cudaError_t LaunchVptqPrepare(const VptqPrepareCall& call, cudaStream_t stream);

// What becomes of sums: y = sum * factor + dot + bias.
struct VptqResult {
  int32_t out_features;
  int32_t num_tokens;
  const float* factors;  // [num_tokens], null: ones
  const float* dots;     // [num_tokens]
  const float* bias;     // [out_features], null: zeros
  void* y;
  int64_t y_stride;
  DType y_dtype;
  float* partials;  // [splits, num_tokens, out_features], null: one split
  int32_t splits;
};
// Whether these kernels were compiled so that they wait for what they read of the kernel ahead (PTX
// of 9.0 on): only then may they begin early.
bool VptqWaitsInKernels();

// Adds the splits in order. early: begins while the kernel ahead still runs.
cudaError_t LaunchVptqAdd(const VptqResult& result, bool early, cudaStream_t stream);

struct VptqTablesCall {
  const uint32_t* codes;
  const void* centroids;  // fp16 [2^index_bits, kVptqRow]
  const void* residual;   // [2^residual_bits, kVptqRow], unless residual_bits is 0
  int32_t index_bits;
  int32_t residual_bits;
  int32_t length;
  int32_t skip;
  int32_t num_quads;
  int32_t num_units;
  const void* x;  // fp16 [num_tokens * planes, x_stride]
  int64_t x_stride;
  int32_t planes;
  int32_t num_blocks;
  int32_t shared_memory_bytes;  // the most that a block can have
  bool early_launches;
  VptqResult result;
  VptqPrepareCall prepare;  // read where the kernel makes x

  // Set by PlanVptqTables, as is result.splits.
  bool makes_x;
  int32_t num_strips;
  int32_t strips_each;    // of a part
  int32_t parts_at_once;  // 1, or all
  int32_t items_at_once;  // quads that a block has at a time
  int32_t num_thirds;
  int32_t shared_bytes;
  int32_t sum_floats;
};
// Who adds up what. makes_x: neither LaunchVptqPrepare nor `x` is needed, since every block makes x
// itself, to the same bits: of one token, in 16 bits, if one block has all parts of a row.
void PlanVptqTables(VptqTablesCall& call);
// Of a call with a plan. Up to 16 rows of x in each pass over the weights; adds up splits, too.
cudaError_t LaunchVptqTables(const VptqTablesCall& call, cudaStream_t stream);

// A group's books and codes as they lie, and its place among the columns.
struct VptqDeviceGroup {
  const uint8_t* codes;
  const void* centroids;
  const void* residual;  // null: none
  DType dtype;           // of the books
  int32_t index_bits;
  int32_t residual_bits;
  int32_t num_columns;
  int32_t first_position;
  int64_t row_bytes;
  bool in_tables;     // then books are fp16 rows of kVptqRow, to be multiplied with book_factor
  bool in_bytes;      // of those in tables: codes in the order of byte books' kernels
  int32_t num_units;  // or strips, of these
  float book_factor;
};

// Any books, from wherever caches have them: fp32 sums of one group's columns.
struct VptqAnyCall {
  VptqDeviceGroup group;
  int32_t length;
  int32_t skip;
  int32_t num_vectors;
  int32_t out_features;
  int32_t num_tokens;
  const float* x;  // [num_tokens, x_stride] by position
  int64_t x_stride;
  float* to;  // [num_tokens, out_features]
};
cudaError_t LaunchVptqAny(const VptqAnyCall& call, cudaStream_t stream);

// One group's columns of outputs [first, first + num_rows) of the weights, in columns of a matrix
// [num_rows, to_stride].
struct VptqWidenCall {
  VptqDeviceGroup group;
  int32_t length;
  int32_t skip;
  int32_t first;
  int32_t num_rows;
  const int32_t* order;  // by position, as are scale and offset; each may be null
  const float* scale;
  const float* offset;
  DType dtype;
  int64_t to_stride;
  void* to;
};
cudaError_t LaunchVptqWiden(const VptqWidenCall& call, cudaStream_t stream);

}  // namespace thinwire
