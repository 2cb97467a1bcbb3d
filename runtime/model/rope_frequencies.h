// Rotary frequencies of a configuration.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/checkpoint/model_config.h"

namespace thinwire {

// inv_freq[i], i < head_dim / 2: theta^(-2 i / head_dim), then scaled.
//   linear: divided by `factor` (Chen et al., arXiv 2306.15595).
//   llama3: by wavelength 2 pi / inv_freq: longer than original_max_positions / low_freq_factor
//   divided by `factor`, shorter than original_max_positions / high_freq_factor kept, between the
//   two interpolated in original_max_positions / wavelength (the LLaMA 3.1 release).
std::vector<float> RopeFrequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace thinwire
