// Causal attention over a paged KV cache, and the write that fills the cache.
//
// Pages: k_pages and v_pages are [num_pages, num_kv_heads, page_size, head_dim]. Token j of a
// sequence lies in page page_ids[page_offsets[s] + j / page_size] at row j % page_size.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/rope/rope.h"

namespace thinwire {

class StepSequences;

// k_pages[slots[t] / page_size, h, slots[t] % page_size, :] = k[t, h, :]; likewise v.
struct KvWriteArgs {
  ConstTensorView k;                // [num_tokens, num_kv_heads * head_dim] dtype of the pages;
  ConstTensorView v;                //   rows may be strided
  absl::Span<const int64_t> slots;  // [num_tokens] page * page_size + row; distinct
  TensorView k_pages;  // [num_pages, num_kv_heads, page_size, head_dim] fp32 | fp16 | bf16
  TensorView v_pages;
  // On a GPU: the arrays of sequences and tokens, uploaded before for all layers. Null: the call
  // uploads them.
  const StepSequences* step = nullptr;
};
absl::Status KvWrite(const KvWriteArgs& args, Stream& stream);

// Rope and then KvWrite, in one pass on a GPU: write.k are the last columns of rope.x, and are left
// unspecified; the pages and the other columns have the same bits.
absl::Status RotateAndWriteKv(const RopeArgs& rope, const KvWriteArgs& write, Stream& stream);

// Sequence s has n = token_offsets[s + 1] - token_offsets[s] >= 1 query tokens, the last n of its
// context_lens[s] tokens, all of whose K and V are in the pages. The query at position p attends to
// positions j <= p, and with a window > 0 only to j > p - window:
//   out[t, h, :] = sum_j softmax_j(scale * q[t, h, :] . k[j, h / group, :]) v[j, h / group, :],
//   group = num_heads / num_kv_heads.
struct PagedAttentionArgs {
  // Per token.
  ConstTensorView q;  // [num_tokens, num_heads * head_dim] dtype of the pages; rows may be strided
  TensorView out;     // [num_tokens, num_heads * head_dim] the same; must not alias q
  // Per sequence.
  absl::Span<const int32_t> token_offsets;  // [num_seqs + 1], ends at num_tokens
  absl::Span<const int32_t> context_lens;   // [num_seqs]
  absl::Span<const int32_t> page_offsets;   // [num_seqs + 1]
  absl::Span<const int32_t> page_ids;       // [page_offsets[num_seqs]]
  // Per model.
  ConstTensorView k_pages;  // [num_pages, num_kv_heads, page_size, head_dim]
  ConstTensorView v_pages;
  int64_t num_heads = 0;
  float scale = 1.0f;
  int64_t window = 0;  // 0: unlimited
  // Whether a query's result must be the same bits however its sequence is split into calls and its
  // heads into ranks: one order of summation for all. Slow on a GPU, whose `step` is made for it.
  bool batch_invariant = false;
  const StepSequences* step = nullptr;  // as in KvWriteArgs
};

// Scores and sums in fp32; on a GPU, weights of more than 16 query rows (tokens times heads a KV
// head) are rounded to the dtype of the pages. Results of a query do not depend on which other
// sequences share the call. Unimplemented on a GPU for heads of more than 1024 channels.
absl::Status PagedAttention(const PagedAttentionArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status PagedAttentionReference(const PagedAttentionArgs& args);

}  // namespace thinwire
