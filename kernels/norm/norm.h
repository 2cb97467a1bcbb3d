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
  TensorView out;          // [num_tokens, hidden] dtype of x; may be x itself without an order
  float epsilon = 1e-5f;
  // [hidden] int32, a channel of x each, or empty: out[:, j] is the normalised x[:, order[j]] *
  // weight[j] + bias[j], so that weight and bias are in the order of out.
  ConstTensorView order;
};

// Sums in fp32 (fp64 in the reference). num_tokens may be 0.
absl::Status Norm(const NormArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status NormReference(const NormArgs& args);

// First x += delta (if given), stored back rounded to x's dtype; then the channels of norm(x), in
// another order, as codes of one byte (kernels/codes): nothing else is written.
struct NormCodesArgs {
  NormKind kind = NormKind::kLayerNorm;
  TensorView x;  // [num_tokens, hidden] fp32 | fp16 | bf16; written only when delta is given
  ConstTensorView delta;     // [num_tokens, hidden] dtype of x, or empty
  ConstTensorView order;     // [hidden] int32, a channel of x for each code, or empty
  ConstTensorView weight;    // [hidden] fp32: the norm's weight / step, in the order of the codes
  ConstTensorView bias;      // [hidden] fp32: the norm's bias / step + zero, likewise
  ConstTensorView max_code;  // [hidden] uint8
  TensorView codes;          // [num_tokens, hidden] uint8; rows may be strided
  float epsilon = 1e-5f;
};

// codes[:, j] = clamp(round(normalised x[:, order[j]] * weight[j] + bias[j]), 0, max_code[j]),
// halves to even, in fp32. A code of NaN is unspecified. num_tokens may be 0.
absl::Status NormCodes(const NormCodesArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status NormCodesReference(const NormCodesArgs& args);

// x += delta: what a stage that ends before a norm does. Shapes and dtypes as in NormArgs.
absl::Status AddInPlace(TensorView x, ConstTensorView delta, Stream& stream);

// x[:, j] = x[:, j] * weight[j] + bias[j], in fp32 with one rounding to x's dtype: the rest of a
// norm that was taken without its weights. x: as in NormArgs; weight, bias: [hidden] fp32, or empty
// for ones and zeros.
absl::Status ScaleInPlace(TensorView x, ConstTensorView weight, ConstTensorView bias,
                          Stream& stream);

}  // namespace thinwire
