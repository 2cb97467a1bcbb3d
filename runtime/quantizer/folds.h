// Freedoms of a decoder layer: changes of its weights that leave its function as it is, and that
// make it easier to round.
//
// All are exact, and each is chosen so that re-parameterised models end up alike: a channel's scale
// is a weighted geometric mean of what its activation and the weights that read it ask for, both
// measured where re-parameterisation cannot be seen.
#pragma once

#include <vector>

#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/quantizer/channel_stats.h"
#include "runtime/quantizer/dense_layer.h"

namespace thinwire {

// What folding needs of the layer's activations, in the layer as it came.
struct FoldStats {
  const ChannelStats* qkv_in;
  const ChannelStats* v;       // values, [num_kv_heads * head_dim]
  const ChannelStats* out_in;  // with samples where step_bits < 8
  const ChannelStats* mlp_in;
  const ChannelStats* down_in;  // with samples where step_bits < 8
  // Bits of the codes of out_in and down_in. Below 8, v and o_proj, up and down are scaled such
  // that each channel's best step is 1: steps must be alike inside a cluster, and errors of
  // activations weigh more than those of weights.
  int step_bits = 16;
};

// Norm outputs: x' = (x - m) / f, W' = W diag(f), b' = b + W m (the mean only where the norm has an
// offset and the projections have biases). v and o_proj, up and down alike, with f alike for all
// query heads of a KV head.
void FoldLayer(const ModelConfig& config, const FoldStats& stats, DenseLayer& layer,
               ThreadPool& pool);

// Makes rows of v and up (fc1) alike, and those of q and k as alike as their products allow: all
// are of unit mean square where each column is, which is how vectors along rows see them. Scales
// move into o_proj's and down's columns. For KV heads with several query heads, and pairs of
// channels that the rotary embedding turns, alike.
void EqualizeRows(const ModelConfig& config, DenseLayer& layer, ThreadPool& pool);

}  // namespace thinwire
