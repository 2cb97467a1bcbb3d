// The tensors of one rank's part of a decoder.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention/kv_codes.h"
#include "kernels/coded_linear/coded_weights.h"
#include "kernels/codes/codes.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "kernels/vptq_linear/vptq_weights.h"
#include "parallel/plan/shard_plan.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/decoder_spec.h"

namespace thinwire {

// One linear layer of this rank, or several with the same input stacked. Its weight is dense, codes
// in groups, or indices into codebooks.
struct LinearWeights {
  Tensor weight;  // [out_features, in_features] of this rank, dtype of the checkpoint; or:
  std::optional<CodedWeights> codes;
  std::optional<VptqWeights> vptq;
  Tensor bias;  // [out_features] fp32, or empty

  // Where the input comes as codes: see IntegerLinearArgs.
  std::vector<int32_t> segment_offsets;
  std::vector<float> segment_step;
  Tensor offset;  // [out_features] fp32, or empty

  // [in_features] int32: column j reads channel input_order[j], where groups are scattered over the
  // channels and nothing upstream is reordered. Costs a gather of the input.
  Tensor input_order;

  int64_t out_features() const;
  int64_t size_bytes() const;
};

struct NormWeights {
  Tensor weight;  // [hidden] fp32, or empty; where the site that follows is coded or reordered, in
  Tensor bias;    // its order, steps and zeros folded in (NormCodesArgs)

  int64_t size_bytes() const;
};

// How the activations of a site become codes on this rank (kernels/codes), in the order of the
// codes. Empty where they stay as they are.
struct SiteCoding {
  Tensor order;                     // [width] int32: norm outputs that are reordered
  Tensor step, inverse_step, zero;  // [width] fp32
  Tensor max_code;                  // [width] uint8
  Tensor snap;                      // [256] uint8, or empty
  GainKind gain = GainKind::kNone;
  // The linear layers that read the site are dense: activations are only rounded to their codes.
  bool round_only = false;

  bool coded() const { return !max_code.empty(); }
  int64_t size_bytes() const;
};

struct LayerWeights {
  NormWeights attention_norm;
  SiteCoding qkv_in;
  std::vector<LinearWeights> qkv;  // this rank's query heads, its key heads, its value heads
  SiteCoding q;
  std::optional<KvCodes> k_codes, v_codes;
  SiteCoding out_in;
  std::vector<LinearWeights> out;  // the part that ShardPlan::residual_cut gives this rank
  NormWeights mlp_norm;
  SiteCoding mlp_in;
  std::vector<LinearWeights>
      up;  // gate (where there is one), then up, this rank's part of ffn each
  SiteCoding down_in;
  std::vector<LinearWeights> down;  // as `out`

  int64_t size_bytes() const;
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

  // Whether the first token's K and V are kept exactly beside their codes.
  bool exact_first_tokens = false;

  int64_t size_bytes() const;
};

// Called after each layer with how many of the stage's layers are there.
using LoadProgress = std::function<void(int64_t num_loaded, int64_t num_layers)>;

// Reads this rank's slices and nothing else. Errors name file and tensor. With a stream of a GPU,
// what was read moves there layer by layer (device_weights.h), for steps of at most usual_tokens
// but for prompts.
absl::StatusOr<DecoderWeights> LoadDecoderWeights(const Checkpoint& checkpoint,
                                                  const ModelConfig& config, const ShardPlan& plan,
                                                  const LoadProgress& progress = nullptr,
                                                  Stream* stream = nullptr,
                                                  int64_t usual_tokens = 1);

// One layer of them, by its number in the model.
absl::StatusOr<LayerWeights> LoadDecoderLayer(const Checkpoint& checkpoint,
                                              const ModelConfig& config, const ShardPlan& plan,
                                              int64_t layer);

// All but the layers.
absl::StatusOr<DecoderWeights> LoadDecoderEnds(const Checkpoint& checkpoint,
                                               const ModelConfig& config, const ShardPlan& plan);

// What the checkpoint's names of a layer's tensors begin with: "model.decoder.layers.3.".
std::string LayerPrefix(const Checkpoint& checkpoint, const ModelConfig& config, int64_t layer);

}  // namespace thinwire
