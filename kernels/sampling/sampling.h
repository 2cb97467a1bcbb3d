// From logits to token ids and log-probabilities.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

struct SamplingParams {
  float temperature = 0.0f;  // 0: greedy (the smallest id among equals); the rest is then ignored
  int32_t top_k = 0;         // keep the k most probable; 0: all
  float top_p = 1.0f;        // of those, keep the smallest prefix whose mass reaches p; (0, 1]
  uint64_t seed = 0;
};

// InvalidArgument, naming value and bound, unless temperature >= 0 and finite, top_k >= 0 and
// 0 < top_p <= 1.
absl::Status ValidateSamplingParams(const SamplingParams& params);

// A uniform number in [0, 1) that depends on (seed, position) only: Philox4x32-10 (Salmon et al.,
// SC'11) with key = seed and counter = position. The same request draws the same numbers in any
// batch on any number of ranks.
double UniformRandom(uint64_t seed, uint64_t position);

// Row r: tokens ordered by (logit descending, id ascending), cut by top_k, then softmax at the
// temperature, cut by top_p, and the first token whose cumulative mass exceeds
// UniformRandom(seed, position) * kept mass. Sums in double.
struct SampleArgs {
  ConstTensorView logits;                   // [num_seqs, vocab] fp32
  absl::Span<const SamplingParams> params;  // [num_seqs]
  absl::Span<const int64_t> positions;      // [num_seqs] index of the new token in its sequence
  absl::Span<int32_t> token_ids;            // [num_seqs] out, on the host: synchronises
};
absl::Status Sample(const SampleArgs& args, Stream& stream);

// The same tokens, left where later work on the stream finds them: row r's at token_ids[places[r]],
// or -1 there for a row that has no softmax (on the CPU Internal, as of Sample). On a GPU it only
// enqueues.
struct SampleThereArgs {
  ConstTensorView logits;                   // [num_seqs, vocab] fp32
  absl::Span<const SamplingParams> params;  // [num_seqs]
  absl::Span<const int64_t> positions;      // [num_seqs] as in SampleArgs
  absl::Span<const int32_t> places;         // [num_seqs], distinct, each in [0, n)
  TensorView token_ids;                     // int32 [n] out, on the stream's device
};
absl::Status SampleThere(const SampleThereArgs& args, Stream& stream);

// log_probs[r] = logits[r, targets[r]] - log sum_v exp(logits[r, v]); in double, stored as fp32.
struct LogProbArgs {
  ConstTensorView logits;             // [num_rows, vocab] fp32
  absl::Span<const int32_t> targets;  // [num_rows], each in [0, vocab)
  absl::Span<float> log_probs;        // [num_rows] out, on the host: synchronises
};
absl::Status LogProbs(const LogProbArgs& args, Stream& stream);

}  // namespace thinwire
