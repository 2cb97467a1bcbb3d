// LLaMA 2 and 3 (Touvron et al., arXiv 2307.09288; Grattafiori et al., arXiv 2407.21783) and
// Mistral (Jiang et al., arXiv 2310.06825), whose sliding window is a number in the configuration.
#pragma once

#include "runtime/model/decoder_spec.h"

namespace thinwire {

// RMSNorm before each half of a layer, rotary positions, gated feed-forward, grouped KV heads.
DecoderSpec LlamaSpec();

}  // namespace thinwire
