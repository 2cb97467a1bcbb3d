// The ragged inputs of one step on one rank.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

class StepSequences;

// Tokens of all sequences of the step, one sequence after the other. All on the host, borrowed.
struct StepBatch {
  // Per token.
  absl::Span<const int32_t> token_ids;  // [num_tokens]
  absl::Span<const int32_t> positions;  // [num_tokens] in the sequence, from 0
  absl::Span<const int64_t> slots;      // [num_tokens] where K and V go: page * page_size + row
  // Per sequence; as kernels/attention defines them.
  absl::Span<const int32_t> token_offsets;  // [num_seqs + 1]
  absl::Span<const int32_t> context_lens;   // [num_seqs]
  absl::Span<const int32_t> page_offsets;   // [num_seqs + 1]
  absl::Span<const int32_t> page_ids;
  // Rows of the cache's exact first tokens: of each sequence, and of each token that is a first one
  // (-1 of the others).
  absl::Span<const int32_t> exact_rows_of_seqs;    // [num_seqs]
  absl::Span<const int32_t> exact_rows_of_tokens;  // [num_tokens]
  // Tokens whose logits are wanted, ascending.
  absl::Span<const int32_t> output_tokens;

  // `positions` again, int32 [num_tokens], where the model runs; on the CPU it may be empty.
  ConstTensorView positions_there;
  // int32 [any] where the model runs, or empty: a token id below 0 stands for late_ids[-1 - id],
  // which the stream knows by then. First stages.
  ConstTensorView late_ids;
  // On a GPU: all that attention wants, uploaded. Null: operators upload it.
  const StepSequences* step = nullptr;

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()); }
};

}  // namespace thinwire
