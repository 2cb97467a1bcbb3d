// Small random decoder layers for the tests of this folder.
#pragma once

#include <cstdint>

#include "runtime/checkpoint/model_config.h"
#include "runtime/quantizer/dense_layer.h"
#include "runtime/quantizer/layer_pass.h"

namespace thinwire {

// hidden 64, 4 heads of 16, ffn 96. OPT: biases, ReLU; LLaMA: 2 KV heads, gate, SiLU.
ModelConfig SmallConfig(ModelFamily family);

// Weights of a size that keeps activations near 1, with some channels far larger than the others.
DenseLayer RandomLayer(const ModelConfig& config, uint64_t seed);

// Rows of standard normal numbers.
ResidualStream RandomStream(const ModelConfig& config, int64_t num_windows, int64_t seqlen,
                            uint64_t seed);

}  // namespace thinwire
