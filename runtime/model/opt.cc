#include "runtime/model/opt.h"

namespace thinwire {

DecoderSpec OptSpec(const ModelConfig& config) {
  DecoderSpec spec;
  spec.norm = NormKind::kLayerNorm;
  spec.norm_has_bias = true;
  spec.position_offset = 2;  // rows 0 and 1 of the table belong to padding
  spec.prefixes = {"model.decoder.", "decoder.", ""};
  spec.token_embedding = "embed_tokens";
  spec.position_embedding = "embed_positions";
  if (config.embed_dim != config.hidden) {
    spec.project_in = "project_in";
    spec.project_out = "project_out";
  }
  spec.layers = "layers.";
  spec.layer = {.attention_norm = "self_attn_layer_norm",
                .q = "self_attn.q_proj",
                .k = "self_attn.k_proj",
                .v = "self_attn.v_proj",
                .out = "self_attn.out_proj",
                .mlp_norm = "final_layer_norm",
                .gate = "",
                .up = "fc1",
                .down = "fc2"};
  spec.final_norm = "final_layer_norm";
  spec.head = "lm_head";
  return spec;
}

}  // namespace thinwire
