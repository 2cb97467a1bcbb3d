// The derivative of LayerNorm and RMSNorm (kernels/norm).
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/core/thread_pool.h"
#include "kernels/norm/norm.h"

namespace thinwire {

struct NormGradientArgs {
  NormKind kind = NormKind::kLayerNorm;
  float epsilon = 1e-5f;
  absl::Span<const float> gain;  // [hidden], or empty for ones
  absl::Span<const float> x;     // [num_tokens, hidden]: what the norm read
  absl::Span<const float> dy;    // the same shape: the derivative to what it made
  absl::Span<float> dx;          // the same: the derivative to x is added
};

// x^ is the normalised x, r the reciprocal of the deviation and g = dy * gain, all of one token:
//   dx += r (g - mean(g) - x^ mean(g x^))       without mean(g) for RMSNorm
// dgain[hidden] = sum of dy x^ and doffset[hidden] = sum of dy over tokens; either may be null.
// The same bits with any number of threads.
void NormGradient(const NormGradientArgs& args, int64_t hidden, std::vector<float>* dgain,
                  std::vector<float>* doffset, ThreadPool& pool);

}  // namespace thinwire
