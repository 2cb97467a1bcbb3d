// Speed of an engine, and the least that its work must cost.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/trace/kernel_trace.h"
#include "runtime/engine/engine.h"

namespace thinwire {

// What a step must move and compute, over all ranks; embeddings, norms and positions are left out
// as small.
struct StepCost {
  double bytes = 0.0;  // weights read once a step, and the KV entries that attention reads
  double flops = 0.0;  // of linears and attention: 2 per multiply-add
};

// What all ranks together hold: read once a step.
struct ModelBytes {
  double weights = 0.0;
  double kv_per_token = 0.0;  // K and V of a token, in all layers
};

// `batch` sequences that all have `context` tokens in the cache decode one token each.
StepCost DecodeCost(const ModelConfig& config, const ModelBytes& bytes, int64_t batch,
                    int64_t context);
// One prompt of `num_tokens`, logits for the last token only.
StepCost PrefillCost(const ModelConfig& config, const ModelBytes& bytes, int64_t num_tokens);

struct EngineTiming {
  double prefill_seconds = 0.0;      // of a whole prompt, first token included
  double decode_step_seconds = 0.0;  // of one token for each sequence of the batch
};

struct EngineLoad {
  int64_t batch = 1;
  int64_t prompt_tokens = 512;
  int64_t new_tokens = 64;  // at least 4
  // > 0: sequences decode behind so many tokens instead of a prompt; nobody computes these
  // (Engine::SubmitInContext).
  int64_t context = 0;
  int repeats = 5;

  int64_t decode_context() const { return context > 0 ? context : prompt_tokens; }
};

// Runs `batch` prompts of seeded random tokens and decodes `new_tokens` from each, `repeats` times.
// Prefill is timed with one prompt alone, decode while all sequences run; medians over the repeats.
absl::StatusOr<EngineTiming> TimeEngine(Engine& engine, const EngineLoad& load);

struct DecodeTrace {
  KernelTimes times;      // of the leader's GPU
  int64_t num_steps = 0;  // in which all sequences of the batch decoded
};

// What the leader's GPU does in the middle steps of TimeEngine's decoding; with steps ahead from
// within one step to within another. Errors: KernelTrace's.
absl::StatusOr<DecodeTrace> TraceDecode(Engine& engine, const EngineLoad& load);

}  // namespace thinwire
