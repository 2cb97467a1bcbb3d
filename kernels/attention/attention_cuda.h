// What the CUDA kernels of attention take: plain structs of device pointers. Private to
// kernels/attention.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/attention/attention_items.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/core/dtype.h"

namespace thinwire {

// How rows of codes of a head lie in planes (kv_codes.h).
inline constexpr int kMaxRowPlanes = 4;
struct alignas(16) CudaRowPlane {
  uint32_t width;      // bits of a lane
  uint32_t low;        // of them, the even unit's
  uint32_t low_mask;   // of the even unit's code in both halves of a word
  uint32_t high_mask;  // of the odd one's, once it is shifted down
};
struct alignas(16) CudaRowLayout {
  int32_t first_bit[kMaxRowPlanes];  // of planes in a row
  CudaRowPlane planes[kMaxRowPlanes];
};

// K or V.
struct AttentionSide {
  const uint8_t* pages;  // [num_pages, num_kv_heads, page_size, row_bytes]
  int64_t row_bytes;
  // Codes; null for floats. [num_kv_heads, head_dim] by position.
  const int32_t* order;
  const float* step;
  const float* zero;
  const KvPiece* pieces;         // [num_kv_heads, head_dim, kMaxKvPieces]
  const CudaRowLayout* layouts;  // [num_kv_heads]
  const uint16_t* exact;         // fp16 [num_rows, num_kv_heads, head_dim]
};

struct AttentionCall {
  const void* q;
  void* out;
  int64_t q_stride;  // elements from one token to the next
  int64_t out_stride;
  DType q_dtype;
  DType out_dtype;
  DType page_dtype;  // of floats
  int32_t head_dim;
  int32_t num_kv_heads;
  int32_t group;
  int32_t page_size;
  int32_t window;  // 0: unlimited
  float scale;
  const int32_t* token_offsets;  // as in PagedAttentionArgs, on the device
  const int32_t* context_lens;
  const int32_t* page_offsets;
  const int32_t* page_ids;
  const int32_t* exact_rows;  // null: none
  AttentionSide k;
  AttentionSide v;
  const AttentionItem* items;  // of few rows
  int32_t num_items;
  // Of an item's keys, those whose rows kernels that begin early ask for while they wait.
  int32_t keys_ahead;
  // Of few rows on floats. Rows of q have the pages' dtype and begin at multiples of 16 bytes.
  bool q_in_vectors;
  bool wide_blocks;  // of twice as many warps: there is one for each multiprocessor at most
  const AttentionItem* prompt_items;
  int32_t num_prompt_items;
  const AttentionCombine* combines;
  int32_t num_combines;
  // Of a partial: the maximum in units of log2 and the sum of weights, [num_partials, num_kv_heads,
  // kCudaRows] pairs; sums of weight times value, [num_partials, num_kv_heads, kCudaRows,
  // head_dim].
  float* partial_weights;
  float* partial_values;
};

// Codes of one width for all heads; 0: in planes; else -1.
struct CodeWidths {
  int k_bits;
  int v_bits;
};

// Whether the few rows of a call can go to LaunchFewRows; else LaunchPlain takes them.
bool FewRowsFit(const AttentionCall& call);
// Tensor cores, rows of at most kCudaRows an item.
cudaError_t LaunchFewRows(const AttentionCall& call, CodeWidths widths, cudaStream_t stream);
// Any dtype, layout, head_dim up to kMaxPlainHeadDim and page size; rows as LaunchFewRows.
inline constexpr int kMaxPlainHeadDim = 1024;
cudaError_t LaunchPlain(const AttentionCall& call, cudaStream_t stream);
// Folds the partials.
cudaError_t LaunchCombine(const AttentionCall& call, cudaStream_t stream);

// Whether prompts of a call can go to LaunchPrompt: tensor cores, rows of at most kPromptRows an
// item, no partials; else the kernels for few rows take them.
bool PromptFits(const AttentionCall& call);
cudaError_t LaunchPrompt(const AttentionCall& call, cudaStream_t stream);

struct KvWriteCall {
  const void* k;
  const void* v;
  int64_t k_stride;  // elements
  int64_t v_stride;
  DType k_dtype;
  DType v_dtype;
  int32_t num_tokens;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t page_size;
  const int64_t* slots;
  const int32_t* exact_rows;  // null: none
  AttentionSide k_side;       // floats: pages and row_bytes alone
  AttentionSide v_side;
  // Codes: gets the index, in the order of tokens, K before V, of the first value that cannot be
  // stored; all ones before the call.
  unsigned long long* first_wrong;
};
cudaError_t LaunchKvWrite(const KvWriteCall& call, cudaStream_t stream);
cudaError_t LaunchCodedKvWrite(const KvWriteCall& call, cudaStream_t stream);

}  // namespace thinwire
