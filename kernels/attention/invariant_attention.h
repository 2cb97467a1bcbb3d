// Attention on a GPU whose results do not depend on how sequences are split into calls and heads
// into ranks. Private to kernels/attention.
//
// One kernel for all (plain_attention_cuda.cu), whose rows do not touch each other, and splits of
// the keys that begin at the same positions for every row: what a row does not attend to changes no
// bit of its sums.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/attention/attention_items.h"

namespace thinwire {

// Where splits begin: multiples of this, also in a window.
inline constexpr int64_t kInvariantSplitKeys = 1024;

// As CutIntoItems; no item is for the kernel of many rows.
AttentionItems CutIntoInvariantItems(const AttentionCut& cut,
                                     absl::Span<const int32_t> token_offsets,
                                     absl::Span<const int32_t> context_lens);

}  // namespace thinwire
