// The tensors of one rank's part of a decoder.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/tensor.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/decoder_spec.h"

namespace thinwire {

struct LinearWeights {
  Tensor weight;  // [out_features, in_features] of this rank, dtype of the checkpoint
  Tensor bias;    // [out_features] fp32, or empty
};

struct NormWeights {
  Tensor weight;  // [hidden] fp32, or empty
  Tensor bias;
};

struct LayerWeights {
  NormWeights attention_norm;
  LinearWeights qkv;  // rows: this rank's query heads, then its key heads, then its value heads
  LinearWeights out;  // columns: this rank's query heads; the bias lies on tp_rank 0 alone
  NormWeights mlp_norm;
  LinearWeights up;    // rows: gate (where there is one), then up, this rank's part of ffn each
  LinearWeights down;  // columns: this rank's part of ffn; the bias lies on tp_rank 0 alone
};

// Tensors that this rank has no use for are empty.
struct DecoderWeights {
  Tensor token_embedding;     // [vocab part, embed_dim]: first stage, and the last where tied
  Tensor position_embedding;  // [rows, hidden]: first stage
  LinearWeights project_in;   // [hidden, embed_dim]: first stage
  std::vector<LayerWeights> layers;  // of this stage
  NormWeights final_norm;            // last stage
  LinearWeights project_out;         // [embed_dim, hidden]: last stage
  Tensor head;                       // [vocab part, embed_dim]: last stage, untied

  int64_t size_bytes() const;
};

// Called after each layer with how many of the stage's layers are there.
using LoadProgress = std::function<void(int64_t num_loaded, int64_t num_layers)>;

// Reads this rank's slices and nothing else. Errors name file and tensor.
absl::StatusOr<DecoderWeights> LoadDecoderWeights(const Checkpoint& checkpoint,
                                                  const ModelConfig& config, const ShardPlan& plan,
                                                  const LoadProgress& progress = nullptr);

}  // namespace thinwire
