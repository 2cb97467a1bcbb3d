// The forward pass of one rank's part of a decoder model: one layer loop for all families.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "kernels/attention/step_sequences.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/wire/wire.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/decoder_weights.h"
#include "runtime/model/layer_runner.h"
#include "runtime/model/step_batch.h"
#include "runtime/model/step_graphs.h"

namespace thinwire {

// Holds weights and the activations of one step. Thread-compatible. All ranks of the mesh call
// Forward for the same steps in the same order; the ranks of the last stage then call Logits alike.
class Decoder {
 public:
  static constexpr int64_t kMaxLogitRows = 64;

  // `weights`: on the stream's device, where the rest will be. `dtype`: of activations, residual
  // and what crosses ranks natively. Activations for `max_tokens` tokens are allocated here;
  // nothing is allocated later but scratch.
  static absl::StatusOr<Decoder> Create(const ModelConfig& config, const ShardPlan& plan,
                                        DecoderWeights weights, DType dtype, int64_t max_tokens,
                                        Stream& stream);

  Decoder(Decoder&&) = default;
  Decoder& operator=(Decoder&&) = default;

  // Whether steps of one token of each sequence are captured as CUDA graphs and replayed, on a GPU.
  // To begin with they are.
  void set_captures_steps(bool captures) { captures_steps_ = captures; }

  // Runs this rank's layers over the batch: from token ids on the first stage, otherwise from the
  // residual that the previous stage sends; K and V go to `cache`. Sends the residual on, or on the
  // last stage keeps what Logits needs of batch.output_tokens.
  absl::Status Forward(const StepBatch& batch, PagedKvCache& cache, Wire& wire, Stream& stream);

  // Last stage: logits of output tokens [begin, begin + n) of the last Forward, gathered on tp_rank
  // 0; 1 <= n <= kMaxLogitRows, so that memory for a large vocabulary stays bounded. logits: [n,
  // vocab] fp32 on tp_rank 0; ignored (may be empty) on the others, which pass the same n.
  absl::Status Logits(int64_t begin, int64_t n, TensorView logits, Wire& wire, Stream& stream);

  // On a GPU, where K and V are coded: int64 [layers of this rank], which the kernels lower where a
  // value cannot be stored, so that no layer waits; elsewhere empty, as layers return the error.
  ConstTensorView first_wrong() const;
  // The error of what was copied from it, or OK; OK for nothing.
  absl::Status CheckKvStored(absl::Span<const int64_t> first_wrong) const;

  // Bytes that a page of this rank's cache needs, given the page's tokens.
  KvCacheShape CacheShape(int64_t page_size) const;

  const ModelConfig& config() const { return config_; }
  const ShardPlan& plan() const { return plan_; }
  DType dtype() const { return dtype_; }
  int64_t weight_bytes() const { return weights_.size_bytes(); }
  int64_t activation_bytes() const;

 private:
  Decoder() = default;

  absl::Status KeepOutputs(const StepBatch& batch, const Residual& residual, Wire& wire,
                           Stream& stream);
  // Where the model runs, arrays of a step lie as these of StepSequences::Arrays::others.
  enum StepArray : size_t { kTokenIds, kPositions, kOutputTokens };
  // `ids` where the model runs: `array` of sequences_, or on the CPU as they are.
  ConstTensorView There(absl::Span<const int32_t> ids, StepArray array) const;
  absl::Status RunLayers(const StepBatch& batch, Residual& residual, PagedKvCache& cache,
                         Wire& wire, Stream& stream);

  ModelConfig config_;
  DecoderSpec spec_;
  ShardPlan plan_;
  DType dtype_ = DType::kF32;
  Device device_;
  DecoderWeights weights_;
  std::optional<LayerRunner> layers_;

  // Activations of one step; the first dim of each is max_tokens.
  Tensor x_;            // [, hidden] the residual
  Tensor embedded_;     // [, embed_dim] where embeddings are projected
  Tensor outputs_;      // [, hidden] fp32: final hidden states of the output tokens
  Tensor projected_;    // [kMaxLogitRows, embed_dim] fp32 where embeddings are projected
  Tensor logits_part_;  // [kMaxLogitRows, vocab part] fp32, with several tensor-parallel ranks
  int64_t num_outputs_ = 0;

  // On a GPU.
  std::optional<StepSequences> sequences_;
  StepGraphs graphs_;
  bool captures_steps_ = true;
};

}  // namespace thinwire
