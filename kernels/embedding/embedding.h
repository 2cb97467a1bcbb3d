// Table look-up, whole or one vocabulary shard of it.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// out[t, :] (+)= table[ids[t] - first_id, :] where first_id <= ids[t] < first_id + rows of the
// table; other rows count as zero, so that the sum over vocabulary shards is the whole look-up.
struct EmbeddingArgs {
  ConstTensorView ids;    // [num_tokens] int32
  ConstTensorView table;  // [num_rows, width] fp32 | fp16 | bf16
  int64_t first_id = 0;
  bool accumulate = false;  // add to out instead of overwriting it
  TensorView out;  // [num_tokens, width] fp32 | fp16 | bf16 (need not be the table's dtype)
  // int32 [any], may be empty: an id below 0 stands for late_ids[-1 - id], which the host need not
  // know when it enqueues the call.
  ConstTensorView late_ids;
};

absl::Status Embedding(const EmbeddingArgs& args, Stream& stream);

}  // namespace thinwire
