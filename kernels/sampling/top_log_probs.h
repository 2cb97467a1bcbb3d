// The most probable tokens of logits, with their log probabilities: what clients are shown, not
// what decoding needs.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

struct TokenLogProb {
  int32_t token_id = -1;
  float log_prob = 0.0f;
};

// out[r, 0 .. k): the first k tokens of row r in Sample's order (logit descending, id ascending),
// with the log probabilities that LogProbs gives them; those of logits on the CPU are the same
// bits. Logits of a GPU are copied to the host a row at a time and done there.
struct TopLogProbArgs {
  ConstTensorView logits;        // [num_rows, vocab] fp32
  int64_t k = 0;                 // in [1, vocab]
  absl::Span<TokenLogProb> out;  // [num_rows, k], on the host: synchronises
};
// InvalidArgument: shapes, k, or a device that is not the stream's. Internal names the first row
// with a NaN or without a finite maximum.
absl::Status TopLogProbs(const TopLogProbArgs& args, Stream& stream);

}  // namespace thinwire
