// How a call of attention on a GPU is cut into work for blocks of threads. Private to
// kernels/attention.
//
// The query rows of a sequence and a KV head, row r being head r % group of token r / group, are
// cut into blocks of at most kCudaRows (decoding) or kPromptRows (prompts), their keys into splits.
// A block of threads takes one item: a block of rows, a split and a KV head. Where a block of rows
// has several splits, each leaves a partial result, and a second kernel combines them. The cut
// depends on the sequence, and where a call has too few keys for a whole GPU on how many it has: a
// result may then differ in the rounding of its sums from that beside other sequences.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/core/dtype.h"

namespace thinwire {

inline constexpr int kCudaRows = 8;
inline constexpr int kPromptRows = 64;

// Keys of an item of the kernels for few rows; a multiple of 16.
inline constexpr int kMaxSplitKeys = 4096;

struct AttentionItem {
  int32_t seq;
  int32_t first_row;
  int32_t num_rows;   // 0: nothing to do
  int32_t key_begin;  // a multiple of 16
  int32_t key_end;
  int32_t partial;  // where the partial result goes, -1: this item is all there is
};

struct AttentionCombine {
  int32_t seq;
  int32_t first_row;
  int32_t num_rows;  // 0: nothing to do
  int32_t first_partial;
  int32_t num_partials;
};

// What the cut depends on besides the sequences.
struct AttentionCut {
  int64_t group = 1;
  int64_t num_kv_heads = 1;
  int64_t window = 0;        // 0: unlimited
  bool coded = false;        // pages hold codes
  bool has_prompts = false;  // there is a kernel for many rows
};

// Whether there is a kernel for the many rows of prompts.
bool HasPromptKernel(bool coded, DType page_dtype, int64_t head_dim);

struct AttentionItems {
  std::vector<AttentionItem> few;     // of at most kCudaRows
  std::vector<AttentionItem> prompt;  // of at most kPromptRows, without partials
  std::vector<AttentionCombine> combines;
  int64_t num_partials = 0;
};

// token_offsets, context_lens: as in PagedAttentionArgs.
AttentionItems CutIntoItems(const AttentionCut& cut, absl::Span<const int32_t> token_offsets,
                            absl::Span<const int32_t> context_lens);

}  // namespace thinwire
