// From token ids to the residual that enters the first layer.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/wire/wire.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/decoder_weights.h"

namespace thinwire {

struct EmbedTokensArgs {
  const DecoderWeights* weights = nullptr;
  const DecoderSpec* spec = nullptr;
  const ShardPlan* plan = nullptr;  // of the first stage
  ConstTensorView token_ids;        // int32 [num_tokens], on the stream's device
  ConstTensorView late_ids;         // as in StepBatch
  ConstTensorView positions;        // as token_ids
  TensorView narrow;  // scratch [at least num_tokens, embed_dim] where embeddings are projected
  TensorView x;       // [num_tokens, hidden]
};

// x = projected embedding of the token + embedding of its position. Collective over the
// tensor-parallel group, each of whose ranks has a part of the vocabulary.
absl::Status EmbedTokens(const EmbedTokensArgs& args, Wire& wire, Stream& stream);

}  // namespace thinwire
