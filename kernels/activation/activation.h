// Elementwise non-linearities of feed-forward layers.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

enum class ActivationKind {
  kRelu,      // max(x, 0)
  kSilu,      // x / (1 + exp(-x))
  kGelu,      // x * (1 + erf(x / sqrt(2))) / 2
  kGeluTanh,  // x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2
};

// x[i] = f(x[i]), in place. x: [num_tokens, width] fp32 | fp16 | bf16, rows may be strided.
absl::Status Activate(ActivationKind kind, TensorView x, Stream& stream);

// out[t, i] = f(gate[t, i]) * up[t, i]. All [num_tokens, ffn], one float dtype; rows may be
// strided; out may be gate itself.
struct GatedActivationArgs {
  ActivationKind kind = ActivationKind::kSilu;
  ConstTensorView gate;
  ConstTensorView up;
  TensorView out;
};
absl::Status GatedActivation(const GatedActivationArgs& args, Stream& stream);

// The definition of one value, in double, for tests.
double ActivationReference(ActivationKind kind, double x);

}  // namespace thinwire
