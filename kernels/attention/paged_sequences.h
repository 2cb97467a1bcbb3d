// The sequences of a call of paged attention. Private to kernels/attention.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace thinwire {

// As in PagedAttentionArgs.
struct PagedSequences {
  int64_t num_tokens;
  absl::Span<const int32_t> token_offsets;
  absl::Span<const int32_t> context_lens;
  absl::Span<const int32_t> page_offsets;
  absl::Span<const int32_t> page_ids;
  int64_t num_pages;
  int64_t page_size;
};

// InvalidArgument names what does not fit together.
absl::Status CheckSequences(const PagedSequences& seqs);

}  // namespace thinwire
