// OPT (Zhang et al., arXiv 2205.01068).
#pragma once

#include "runtime/model/decoder_spec.h"

namespace thinwire {

// LayerNorm before each half of a layer, or after it in OPT-350m, which also projects narrower
// embeddings in and out; learned positions; ReLU; biases everywhere.
DecoderSpec OptSpec(const ModelConfig& config);

}  // namespace thinwire
