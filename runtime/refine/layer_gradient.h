// A decoder layer over whole windows in fp32, and its derivative: for parameters that are fitted,
// where runtime/model's is for answers.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/quantizer/site_rounding.h"
#include "runtime/refine/causal_attention.h"

namespace thinwire {

// Holds what is between the sites of one layer, so that layers take turns: Backward computes it
// anew. Thread-compatible. The same bits with any number of threads.
class LayerGradient {
 public:
  // For windows of `seqlen` tokens, `num_windows` at a time, of a model whose norms come before
  // attention and MLP. Borrows the pool.
  LayerGradient(const ModelConfig& config, int64_t num_windows, int64_t seqlen, ThreadPool* pool);

  LayerGradient(const LayerGradient&) = delete;
  LayerGradient& operator=(const LayerGradient&) = delete;

  int64_t num_tokens() const { return num_tokens_; }

  // x[num_tokens, hidden], the residual, becomes what the layer makes of it. roundings: of the
  // sites that are coded; null: none.
  absl::Status Forward(const DenseLayer& layer, absl::Span<float> x,
                       const SiteRoundings* roundings = nullptr);

  // x: what Forward was given. dx: the derivative to what Forward made of it, which becomes that to
  // x. gradient: all of it is overwritten, in the shapes of the layer; what the layer lacks, it
  // lacks. Through a rounding the derivative goes as if it added a constant.
  absl::Status Backward(const DenseLayer& layer, absl::Span<const float> x, absl::Span<float> dx,
                        DenseLayer& gradient, const SiteRoundings* roundings = nullptr);

 private:
  // Fills what is below up to the MLP's last projection.
  absl::Status Recompute(const DenseLayer& layer, absl::Span<const float> x,
                         const SiteRoundings* roundings);
  // Rounds [num_tokens, width], rows `stride` apart, as the site's codes do, where there are any.
  void Round(QuantSite site, const SiteRoundings* roundings, float* rows, int64_t width,
             int64_t stride);
  absl::Status ApplyNorm(const DenseNorm& norm, const std::vector<float>& x,
                         std::vector<float>& out);
  absl::Status Rotate(float* rows, int64_t num_heads, bool back);
  // y[num_tokens, out] = x W^T + b, rows of y `ldy` apart; added to y with `add`.
  void Apply(const DenseLinear& linear, const std::vector<float>& x, float* y, int64_t ldy,
             bool add = false);
  // Of y = x W^T + b: the derivatives to W and b into `gradient`, that to x into or onto dx.
  void Differentiate(const DenseLinear& linear, const std::vector<float>& x, const float* dy,
                     int64_t ldy, bool add, std::vector<float>& dx, DenseLinear& gradient);
  void DifferentiateNorm(const DenseNorm& norm, absl::Span<const float> x,
                         const std::vector<float>& dy, absl::Span<float> dx, DenseNorm& gradient);

  const ModelConfig config_;
  const CausalAttentionShape shape_;
  const int64_t num_tokens_;
  ThreadPool* pool_;
  Stream stream_;
  CausalAttention attention_;
  std::vector<int32_t> positions_;
  std::vector<float> frequencies_, negative_frequencies_;

  std::vector<float> attention_in_;  // [tokens, hidden]: the norm's output
  std::vector<float> qkv_;           // [tokens, qkv_width], rotated
  std::vector<float> attended_;      // [tokens, q_width]
  std::vector<float> middle_;        // [tokens, hidden]: the residual between the halves
  std::vector<float> mlp_in_;        // [tokens, hidden]
  std::vector<float> gate_, up_;     // [tokens, ffn] before the activation
  std::vector<float> down_in_;       // [tokens, ffn]
  // Derivatives.
  std::vector<float> dqkv_, dattended_, dnormed_, dgate_, dup_;
};

}  // namespace thinwire
