// The forward pass of one decoder layer on one rank: one order of operators for all families.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/activation/activation.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"
#include "kernels/norm/norm.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/wire/wire.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/model/decoder_spec.h"
#include "runtime/model/decoder_weights.h"
#include "runtime/model/site_hook.h"
#include "runtime/model/step_batch.h"

namespace thinwire {

// The residual between layers of one step.
struct Residual {
  TensorView x;  // [num_tokens, hidden]
  // Rows of x that hold on this rank. `whole`: those of all tokens, on every rank of the group;
  // else each rank keeps Wire::OwnRows.
  Range rows;
  bool whole = true;
  // x lacks what LayerRunner::delta() holds: the last half's sum is left to the norm that comes
  // next.
  bool lacks_delta = false;
  // What delta() holds is this rank's part of that sum.
  bool lacks_sum = false;
  Site last_sum = Site::kEmbedding;  // where it was last changed
};

// Holds the activations inside a layer, for up to max_tokens tokens; all layers share them.
// Move-only, thread-compatible.
class LayerRunner {
 public:
  // `dtype`: of activations, and of what crosses ranks natively.
  // Everything is on the stream's device.
  static absl::StatusOr<LayerRunner> Create(const ModelConfig& config, const ShardPlan& plan,
                                            DType dtype, int64_t max_tokens, Stream& stream);

  LayerRunner(LayerRunner&&) = default;
  LayerRunner& operator=(LayerRunner&&) = default;

  // Runs `layer` over the batch; K and V go to layer `cache_layer` of the cache. Collective over
  // the tensor-parallel group. Where norms come before their half of a layer, the residual lacks
  // delta() on return, whose sum FinishSum completes; where they come after, it is complete, before
  // and after.
  absl::Status Run(const LayerWeights& layer, int64_t cache_layer, Residual& residual,
                   const StepBatch& batch, PagedKvCache& cache, Wire& wire, Stream& stream,
                   SiteHook* hook = nullptr);

  // Sums what delta() holds over ranks where the residual lacks that.
  absl::Status FinishSum(Residual& residual, Wire& wire, Stream& stream);

  // [num_tokens, hidden]: what the last half of the last layer adds; rows as the residual's.
  ConstTensorView delta(int64_t num_tokens) const { return delta_.view().Rows(0, num_tokens); }

  // out = norm(x).
  absl::Status ApplyNorm(const NormWeights& weights, TensorView x, TensorView out,
                         Stream& stream) const;

  // See Decoder.
  ConstTensorView first_wrong() const { return first_wrong_.view(); }
  // The error of a layer with coded K and V for which `first_wrong` was found, or OK.
  absl::Status KvStoredStatus(const LayerWeights& layer, int64_t first_wrong) const;

  int64_t size_bytes() const;

 private:
  LayerRunner() = default;

  // What enters a linear layer: rows, or their codes and, where the site has them, gains.
  struct Input {
    ConstTensorView x;
    ConstTensorView codes;
    ConstTensorView gains;
  };

  // norm(x + delta) of the residual in the site's order, coded where the site is; x summed in
  // place. All rows on every rank.
  absl::StatusOr<Input> NormSite(const NormWeights& weights, const SiteCoding& coding,
                                 QuantSite site, Residual& residual, Wire& wire, Stream& stream,
                                 SiteHook* hook);
  // The residual itself, whose norm has been taken, as NormSite.
  absl::StatusOr<Input> ResidualSite(const SiteCoding& coding, QuantSite site,
                                     const Residual& residual, Wire& wire, Stream& stream,
                                     SiteHook* hook);
  // `x` itself, rounded in place where the site only rounds, or its codes. Where a gain is that of
  // a row of which each rank has a part (at `site`), ranks agree on it.
  absl::StatusOr<Input> CodeSite(const SiteCoding& coding, TensorView x, Site site, Wire& wire,
                                 Stream& stream);
  static absl::Status Round(const SiteCoding& coding, TensorView x, Stream& stream);
  TensorView CodesView(int64_t num_tokens, int64_t width) {
    return TensorView(codes_.mutable_view().mutable_raw(), DType::kU8, {num_tokens, width},
                      codes_.view().device());
  }

  // gate: as CodedLinearArgs.
  absl::Status ApplyLinears(const std::vector<LinearWeights>& linears, const Input& input,
                            TensorView y, const Wire& wire, Stream& stream,
                            std::optional<ActivationKind> gate = std::nullopt);
  // Columns of x in another order; valid until the next call.
  absl::StatusOr<ConstTensorView> GatherInput(ConstTensorView order, ConstTensorView x,
                                              Stream& stream);
  absl::Status WriteCodedKv(const LayerWeights& layer, int64_t cache_layer, ConstTensorView k,
                            ConstTensorView v, const StepBatch& batch, PagedKvCache& cache,
                            Stream& stream);
  absl::Status Attend(const LayerWeights& layer, int64_t cache_layer, ConstTensorView q,
                      TensorView out, const StepBatch& batch, PagedKvCache& cache, const Wire& wire,
                      Stream& stream);
  // Each half leaves its sum in delta_, in the rows that the residual then has; where all ranks
  // have all rows, this rank's part of it.
  absl::Status AttentionHalf(const LayerWeights& layer, int64_t cache_layer, const Input& input,
                             Residual& residual, const StepBatch& batch, PagedKvCache& cache,
                             Wire& wire, Stream& stream, SiteHook* hook);
  absl::Status MlpHalf(const LayerWeights& layer, const Input& input, Residual& residual,
                       Wire& wire, Stream& stream, SiteHook* hook);
  // Leaves what o_proj or down (`linears`) make of this rank's input in delta_.
  absl::Status AddUp(Site site, const std::vector<LinearWeights>& linears, const Input& input,
                     Residual& residual, Wire& wire, Stream& stream);
  // The columns of all ranks where linears are cut by output features and this rank has a part of
  // their input; valid until the next call.
  absl::StatusOr<Input> GatherInputs(Site site, const Input& input, Wire& wire, Stream& stream);
  // residual = norm(residual + delta).
  absl::Status NormResidual(const NormWeights& weights, Residual& residual, Wire& wire,
                            Stream& stream);
  // Norm(args) of the residual with what it lacks.
  absl::Status NormWithDelta(NormArgs args, Residual& residual, Wire& wire, Stream& stream);

  ModelConfig config_;
  DecoderSpec spec_;
  ShardPlan plan_;
  Tensor inv_freq_;  // [head_dim / 2] fp32, with rope

  // The first dim of each is max_tokens.
  Tensor normed_;    // [, hidden]
  Tensor delta_;     // [, hidden] what a half of a layer adds
  Tensor qkv_;       // [, (num_heads + 2 num_kv_heads) of this rank * head_dim]
  Tensor attended_;  // [, num_heads of this rank * head_dim]
  Tensor mlp_;       // [, rows of LayerWeights::up]
  Tensor codes_;     // [, width of the widest site] uint8
  Tensor gains_;     // fp32
  Tensor gathered_;  // [, width of the widest site], from the first gather on
  Tensor whole_;     // [, bytes of the widest input of o_proj and down], where these are gathered
  Tensor first_wrong_;  // int64 [layers], on a GPU
  Tensor packed_;       // [, ffn of this rank], there
};

}  // namespace thinwire
