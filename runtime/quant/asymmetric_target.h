// The weights that GPTQ should aim at when its inputs are those of a quantised model.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"

namespace thinwire {

// The asymmetric target W + strength W C (H + damping)^-1 [out, in]: the weights whose outputs on
// the quantised stream's inputs x best match W's on the target stream's inputs y (least squares; C
// = E[(y - x) x^T]: SecondMoments::TargetShift, centred like H). `factor` is that of the damped H.
// In double; GPTAQ (Li et al., arXiv 2504.02692) corrects for the same term column by column.
std::vector<float> AsymmetricTarget(int64_t out_features, int64_t in_features,
                                    absl::Span<const float> weights,
                                    absl::Span<const double> target_shift,
                                    absl::Span<const double> factor, double strength,
                                    ThreadPool& pool);

// The same, on a GPU where `gpu` is one's stream, whose errors it returns.
absl::StatusOr<std::vector<float>> AsymmetricTarget(int64_t out_features, int64_t in_features,
                                                    absl::Span<const float> weights,
                                                    absl::Span<const double> target_shift,
                                                    absl::Span<const double> factor,
                                                    double strength, ThreadPool& pool, Stream* gpu);

}  // namespace thinwire
