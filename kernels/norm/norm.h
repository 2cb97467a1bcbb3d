// LayerNorm and RMSNorm, with the residual addition that precedes them.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

enum class NormKind {
  kLayerNorm,  // (x - mean) / sqrt(var + epsilon) * weight + bias; var is the biased variance
  kRmsNorm,    // x / sqrt(mean(x^2) + epsilon) * weight
};

// First x += delta (if given), stored back rounded to x's dtype; then out = norm(x).
struct NormArgs {
  NormKind kind = NormKind::kLayerNorm;
  TensorView x;  // [num_tokens, hidden] fp32 | fp16 | bf16; written only when delta is given
  ConstTensorView delta;   // [num_tokens, hidden] dtype of x, or empty
  ConstTensorView weight;  // [hidden] fp32, or empty for ones
  ConstTensorView bias;    // [hidden] fp32, or empty for zeros; LayerNorm only
  TensorView out;          // [num_tokens, hidden] dtype of x; may be x itself
  float epsilon = 1e-5f;
};

// Sums in fp32 (fp64 in the reference). num_tokens may be 0.
absl::Status Norm(const NormArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status NormReference(const NormArgs& args);

// x += delta: what a stage that ends before a norm does. Shapes and dtypes as in NormArgs.
absl::Status AddInPlace(TensorView x, ConstTensorView delta, Stream& stream);

}  // namespace thinwire
