// Speed of an engine, and the least that its work must cost.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/engine/engine.h"

namespace thinwire {

// What a step must move and compute, over all ranks; embeddings, norms and positions are left out
// as small.
struct StepCost {
  double bytes = 0.0;  // weights read once a step, and the KV entries that attention reads
  double flops = 0.0;  // of linears and attention: 2 per multiply-add
};

// `batch` sequences that all have `context` tokens in the cache decode one token each.
StepCost DecodeCost(const ModelConfig& config, double weight_bytes, DType kv_dtype, int64_t batch,
                    int64_t context);
// One prompt of `num_tokens`, logits for the last token only.
StepCost PrefillCost(const ModelConfig& config, double weight_bytes, DType kv_dtype,
                     int64_t num_tokens);

struct EngineTiming {
  double prefill_seconds = 0.0;      // of a whole prompt, first token included
  double decode_step_seconds = 0.0;  // of one token for each sequence of the batch
};

// Runs `batch` prompts of `prompt_tokens` seeded random tokens and decodes `new_tokens` from each,
// `repeats` times. Prefill is timed with one prompt alone, decode while all sequences run; medians
// over the repeats.
absl::StatusOr<EngineTiming> TimeEngine(Engine& engine, int64_t batch, int64_t prompt_tokens,
                                        int64_t new_tokens, int repeats);

}  // namespace thinwire
