// Dense linear layers: y = x W^T + b.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// y[t, o] = sum_i x[t, i] * weight[o, i] + bias[o]
struct LinearArgs {
  ConstTensorView x;       // [num_tokens, in_features]   fp32 | fp16 | bf16; rows may be strided
  ConstTensorView weight;  // [out_features, in_features] fp32 | fp16 | bf16; contiguous
  ConstTensorView bias;    // [out_features] fp32, or empty
  TensorView y;            // [num_tokens, out_features]  dtype of x; rows may be strided; no alias
  // Whether a token's row of y must be the same bits whatever the number of tokens and which of the
  // output features are asked for.
  bool batch_invariant = false;
};

// Products and sums in fp32 whatever the storage. num_tokens may be 0. InvalidArgument names the
// shapes that do not fit; Unimplemented on a device without this operator.
//
// On the CPU, up to 32 tokens (64 with a 16-bit weight) an output is summed in an order that
// depends on in_features only: a token's row of y is bit for bit the same beside other tokens and
// with any number of threads. Beyond that the order is BLAS's and may differ with num_tokens and
// threads, and batch_invariant, which keeps to the first order, costs a multiple of the time. On a
// GPU it is cuBLASLt's for the shape: the same bits again for the same shape. With batch_invariant
// an output is summed there by plain multiply-adds in an order that depends on in_features only.
absl::Status Linear(const LinearArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status LinearReference(const LinearArgs& args);

}  // namespace thinwire
