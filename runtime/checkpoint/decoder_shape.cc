#include "runtime/checkpoint/decoder_shape.h"

namespace thinwire {

DecoderShape ShapeOf(const ModelConfig& config) {
  return {.num_layers = config.num_layers,
          .num_heads = config.num_heads,
          .num_kv_heads = config.num_kv_heads,
          .ffn = config.ffn,
          .vocab = config.vocab};
}

}  // namespace thinwire
