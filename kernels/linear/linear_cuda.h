// Linear on a GPU, in builds with CUDA. Private to kernels/linear.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/linear/linear.h"

namespace thinwire {

// Arguments are checked and on the stream's GPU, at least one token and one feature. By cuBLASLt,
// whose handle and plans the stream keeps. Where x and weight differ in dtype, or no plan exists
// for them as they lie, fp32 copies of both are multiplied, save for few tokens in fp32. With
// batch_invariant OrderedLinearCuda.
absl::Status LinearCuda(const LinearArgs& args, Stream& stream);

// fp32 activations of few tokens by 16-bit weights, where memory is aligned to 16 bytes. Sums in an
// order that depends on in_features alone.
bool MixedFewTokensFit(const LinearArgs& args);
absl::Status MixedFewTokensCuda(const LinearArgs& args, Stream& stream);

// Any dtypes and alignment, with the same bits for a token's element whatever is beside it.
absl::Status OrderedLinearCuda(const LinearArgs& args, Stream& stream);

// y = sums + bias, rounded once to y's dtype. sums: [num_tokens, out_features] fp32, contiguous;
// may be y's own memory. bias: as in LinearArgs.
absl::Status AddBiasCuda(const ConstTensorView& sums, const ConstTensorView& bias,
                         const TensorView& y, Stream& stream);

}  // namespace thinwire
