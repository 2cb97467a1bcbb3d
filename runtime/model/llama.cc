#include "runtime/model/llama.h"

namespace thinwire {

DecoderSpec LlamaSpec() {
  DecoderSpec spec;
  spec.norm = NormKind::kRmsNorm;
  spec.norm_has_bias = false;
  spec.rope = true;
  spec.prefixes = {"model.", ""};
  spec.token_embedding = "embed_tokens";
  spec.layers = "layers.";
  spec.layer = {.attention_norm = "input_layernorm",
                .q = "self_attn.q_proj",
                .k = "self_attn.k_proj",
                .v = "self_attn.v_proj",
                .out = "self_attn.o_proj",
                .mlp_norm = "post_attention_layernorm",
                .gate = "mlp.gate_proj",
                .up = "mlp.up_proj",
                .down = "mlp.down_proj"};
  spec.final_norm = "norm";
  spec.head = "lm_head";
  return spec;
}

}  // namespace thinwire
