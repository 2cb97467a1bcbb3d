// What the files of kernels/activation share: the backends.
#pragma once

#include <cstdint>

#include "kernels/activation/activation.h"
#include "kernels/core/stream.h"

namespace thinwire {

// Work is dealt out in pieces of rows, so that the wide rows of a single token still split.
inline constexpr int64_t kPieceWidth = 1024;

// Checked arguments in host memory, CPU stream. `up` is empty for Activate. In fp32, with eps =
// 2^-24, before rounding to the dtype: |result - f(x) * up| <= (8 + c(x)) * eps * |f(x) * up| +
// 2^-126 * |up|, where c(x) is 0 for ReLU and SiLU, x^2 for GELU and 8 * |x + 0.044715 x^3| for
// GELU tanh: what the tails of the latter make of one rounding of x^2 and a few of x^3.
void ActivationCpu(const GatedActivationArgs& args, Stream& stream);

// The same on a GPU, in builds with CUDA, and to within (12 + 2 c(x)) eps.
absl::Status ActivationCuda(const GatedActivationArgs& args, Stream& stream);

}  // namespace thinwire
