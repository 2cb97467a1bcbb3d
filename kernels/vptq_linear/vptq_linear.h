// Linear layers whose weights are indices into codebooks of vectors.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/vptq_linear/vptq_weights.h"

namespace thinwire {

// y[t, o] = sum_i x[t, i] * w[o, i] + bias[o]
struct VptqLinearArgs {
  ConstTensorView x;  // [num_tokens, in_features] fp32 | fp16 | bf16; rows may be
                      // strided
  const VptqWeights* weights = nullptr;  // [out_features, in_features]
  ConstTensorView bias;                  // [out_features] fp32, or empty
  TensorView y;  // [num_tokens, out_features] dtype of x; rows may be strided; no alias
  bool batch_invariant = false;  // as LinearArgs
};

// Products and sums in fp32: x times the columns' scales once, then of a centroid and its residual
// the sum, times that; x times the columns' offsets is one number a token. num_tokens may be 0.
// InvalidArgument names the shapes that do not fit; Unimplemented on a device without this
// operator.
//
// Up to 16 tokens an output is summed in an order that depends on the columns only: a token's row
// of y is bit for bit the same beside other tokens, with any number of threads, and when the
// weights are any outputs of a layer. Beyond that the order is BLAS's, and batch_invariant, which
// keeps to the first, costs a multiple of the time.
//
// On a GPU, weights come by VptqWeights::CopyTo. Where books are in shared memory (vptq_device.h),
// x times the scales is rounded to fp16, for fp32 to three of these (2^-33 of a token's largest),
// and each product is exact; the order of summation is as above up to kFewTableTokens, with byte
// books up to kFewByteTokens, with other books up to kFewAnyTokens, and with batch_invariant
// always. Beyond, weights are rounded to the dtype of x some rows at a time.
absl::Status VptqLinear(const VptqLinearArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status VptqLinearReference(const VptqLinearArgs& args);

}  // namespace thinwire
