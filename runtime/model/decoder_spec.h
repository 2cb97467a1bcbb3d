// What distinguishes one family of decoder models from another, as data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/norm/norm.h"
#include "runtime/checkpoint/model_config.h"

namespace thinwire {

// Names of a layer's tensors, below the layer's prefix and without ".weight" / ".bias".
struct LayerTensorNames {
  std::string attention_norm;
  std::string q, k, v;
  std::string out;  // o_proj
  std::string mlp_norm;
  std::string gate;  // empty where the feed-forward layer has no gate
  std::string up;    // fc1
  std::string down;  // fc2
};

struct DecoderSpec {
  NormKind norm = NormKind::kLayerNorm;
  bool norm_has_bias = true;

  // Positions: rotary on q and k, or a learned table whose row is position + position_offset.
  bool rope = false;
  int64_t position_offset = 0;

  // What checkpoints put in front of all names but the head's; the first under which the embedding
  // is found holds.
  std::vector<std::string> prefixes;
  std::string token_embedding;
  std::string position_embedding;  // empty with rope
  std::string project_in;          // empty unless the embeddings are narrower than the hidden size
  std::string project_out;
  std::string layers;  // layer l's prefix is layers + "l."
  LayerTensorNames layer;
  std::string final_norm;
  std::string head;  // no prefix; absent where tied
};

// The spec of the configuration's family.
DecoderSpec DecoderSpecFor(const ModelConfig& config);

}  // namespace thinwire
