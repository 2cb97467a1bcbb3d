// Causal attention over a paged KV cache of 8- to 1-bit codes (kernels/attention/kv_codes.h), and
// the write that fills the cache. As kernels/attention/paged_attention.h otherwise.
//
// Every query sees the codes of all its keys, its own among them. Position 0 of a sequence may be
// kept exactly: models put weight on their first token out of all proportion, with values far
// outside the range of others, and behind a constant first token they are constants of the model.
#pragma once

#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

class StepSequences;

// Row slots[t] % page_size of page slots[t] / page_size, head h, gets the codes
//   clamp(round_half_even(x[order[j]] / step[j] + zero[j]), 0, 2^bits - 1)
// of token t, division and sum rounded to fp32 each. exact_k[exact_rows[t], h, :] = k[t, h, :];
// likewise V.
struct CodedKvWriteArgs {
  ConstTensorView k;                // [num_tokens, num_kv_heads * head_dim] fp32 | fp16 | bf16;
  ConstTensorView v;                //   rows may be strided; channels in the model's order
  absl::Span<const int64_t> slots;  // [num_tokens] page * page_size + row; distinct
  const KvCodes* k_codes = nullptr;
  const KvCodes* v_codes = nullptr;
  TensorView k_pages;  // uint8 [num_pages, num_kv_heads, page_size, k_codes->row_bytes()]
  TensorView v_pages;  // uint8 [num_pages, num_kv_heads, page_size, v_codes->row_bytes()]
  // [num_tokens] row of exact_k and exact_v that the token's K and V go to as well, -1: none; rows
  // given are distinct. Empty: none for all.
  absl::Span<const int32_t> exact_rows;
  TensorView exact_k;  // fp16 [num_rows, num_kv_heads, head_dim], channels in the model's order;
  TensorView exact_v;  //   empty views where no row is used
  // On a GPU: int64[1], lowered to the index of the first value that cannot be stored, for
  // CodedKvWriteError; so that the call need not wait. Empty: it waits. The CPU has no use for it.
  TensorView first_wrong;
  // On a GPU: the arrays of sequences and tokens, uploaded before for all layers. Null: the call
  // uploads them.
  const StepSequences* step = nullptr;
};

// InvalidArgument names token, K or V, head and channel of a NaN or an infinity, or of a value that
// would become one in exact_k or exact_v; what the call's slots and rows hold is then undefined.
absl::Status CodedKvWrite(const CodedKvWriteArgs& args, Stream& stream);

// What CodedKvWriteArgs::first_wrong is before the first call.
inline constexpr int64_t kNoWrongValue = std::numeric_limits<int64_t>::max();
// OK for kNoWrongValue, else the error of the call with args that lowered first_wrong to `index`.
absl::Status CodedKvWriteError(const CodedKvWriteArgs& args, int64_t index);

// As PagedAttentionArgs.
struct CodedPagedAttentionArgs {
  // Per token; dtypes of q and out are independent of each other. Channels in the model's order.
  ConstTensorView q;  // [num_tokens, num_heads * head_dim] fp32 | fp16 | bf16; rows may be strided
  TensorView out;     // [num_tokens, num_heads * head_dim]; must not alias q
  // Per sequence.
  absl::Span<const int32_t> token_offsets;  // [num_seqs + 1], ends at num_tokens
  absl::Span<const int32_t> context_lens;   // [num_seqs]
  absl::Span<const int32_t> page_offsets;   // [num_seqs + 1]
  absl::Span<const int32_t> page_ids;       // [page_offsets[num_seqs]]
  // [num_seqs] row of exact_k and exact_v that is used instead of the codes of the sequence's
  // position 0, -1: none. Empty: none for all.
  absl::Span<const int32_t> exact_rows;
  // Per model.
  const KvCodes* k_codes = nullptr;
  const KvCodes* v_codes = nullptr;
  ConstTensorView k_pages;  // uint8 [num_pages, num_kv_heads, page_size, row_bytes]
  ConstTensorView v_pages;
  ConstTensorView exact_k;  // fp16 [num_rows, num_kv_heads, head_dim]; empty where no row is used
  ConstTensorView exact_v;
  int64_t num_heads = 0;
  float scale = 1.0f;
  int64_t window = 0;                   // 0: unlimited
  bool batch_invariant = false;         // as PagedAttentionArgs
  const StepSequences* step = nullptr;  // the same
};

// Scores, weights and sums in fp32. A query's result is a function of its q, of the rows it attends
// to and of their positions, and of whether its sequence has more than 8 query tokens times heads a
// KV head in the call (two orders of summation, unless batch_invariant); of nothing else: not of
// other sequences, of page ids or page size, of threads, nor of how a prompt is split into calls
// beyond that. On a GPU also of the queries of its sequence and KV head in its block of 8, of
// whether pages have a multiple of 16 rows, and of how many keys the call has, unless
// batch_invariant. Unimplemented on a GPU for heads of more than 1024 channels.
absl::Status CodedPagedAttention(const CodedPagedAttentionArgs& args, Stream& stream);

// The definition, in double, for tests. args must fit.
absl::Status CodedPagedAttentionReference(const CodedPagedAttentionArgs& args);

}  // namespace thinwire
