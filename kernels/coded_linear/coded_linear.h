// Linear layers whose weights are codes: on activations in floating point, and on activations that
// are codes themselves.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/activation/activation.h"
#include "kernels/coded_linear/coded_weights.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// y[t, o] = sum_i x[t, i] * w[o, i] + bias[o]
struct CodedLinearArgs {
  ConstTensorView x;                      // [num_tokens, in_features] fp32 | fp16 | bf16; rows may
                                          // be strided
  const CodedWeights* weights = nullptr;  // [out_features, in_features]
  ConstTensorView bias;                   // [out_features] fp32, or empty
  TensorView y;  // [num_tokens, out_features] dtype of x; rows may be strided; no alias
  bool batch_invariant = false;  // as LinearArgs
  // Where HasGates: rows o and out_features / 2 + o are rounded to y's dtype as they would be, and
  // become one, f(row o) * row out_features / 2 + o: the bits of GatedActivation of them. y is
  // [num_tokens, out_features / 2].
  std::optional<ActivationKind> gate;
};

// Whether CodedLinear and IntegerLinear take a gate: on GPUs, up to 64 tokens.
bool HasGates(const CodedWeights& weights, int64_t num_tokens);

// Products and sums in fp32. num_tokens may be 0. InvalidArgument names the shapes that do not fit;
// Unimplemented on a device without this operator.
//
// On the CPU, up to 32 tokens an output is summed in an order that depends on the groups only: a
// token's row of y is bit for bit the same beside other tokens, with any number of threads, and
// when the weights are any subset of the output rows. Beyond that the order is BLAS's and may
// differ with num_tokens and threads, and batch_invariant, which keeps to the first, costs a
// multiple of the time. On a GPU up to 64 tokens, and with batch_invariant always, the order
// depends on the groups only; beyond, it is cuBLASLt's, and weights are rounded to the dtype of x.
absl::Status CodedLinear(const CodedLinearArgs& args, Stream& stream);

// The definition, in double, for tests.
absl::Status CodedLinearReference(const CodedLinearArgs& args);

// y[t, o] = gain[t] * (sum_s step[s] * scale[o, g(s)] * isum[t, o, s] - offset[o]) + bias[o],
// isum[t, o, s] = sum_{i in s} codes[t, i] * (wcode[o, i] - wzero[o, g(s)])
//
// over segments s of consecutive columns, each inside one group g(s) of the weights. With codes
// that mean x[t, i] = gain[t] * step[i] * (codes[t, i] - zero[i]) and offset = W (step * zero),
// that is W x + bias (arXiv 2304.01089, section 3.2; the zeros cost nothing at run time).
struct IntegerLinearArgs {
  ConstTensorView codes;                      // [num_tokens, in_features] uint8; rows may be
                                              // strided
  ConstTensorView gains;                      // [num_tokens] fp32, or empty for ones
  absl::Span<const int32_t> segment_offsets;  // [num_segments + 1] columns, ascending from 0 to
                                              // in_features; multiples of 16 are fast
  absl::Span<const float> segment_step;       // [num_segments]
  const CodedWeights* weights = nullptr;      // [out_features, in_features]
  ConstTensorView offset;                     // [out_features] fp32, or empty for zeros
  ConstTensorView bias;                       // [out_features] fp32, or empty for zeros
  TensorView y;                               // [num_tokens, out_features] fp32 | fp16 | bf16; rows
                                              // may be strided
  std::optional<ActivationKind> gate;         // as CodedLinearArgs
};

// isum is exact in int32: a segment has at most (2^31 - 1) / 255 / the largest code or zero of the
// weights columns. Segments are added in fp32 in ascending order: an element of y has the same bits
// beside any other tokens, with any number of threads, in any subset of the output rows. A GPU adds
// pieces of segments, beyond 64 tokens in another order where some are not whole chunks of 128
// columns (but integer_linear_in_order.h). num_tokens may be 0. InvalidArgument names what misfits.
absl::Status IntegerLinear(const IntegerLinearArgs& args, Stream& stream);

// The definition, sums over a segment exact and the rest in double, for tests.
absl::Status IntegerLinearReference(const IntegerLinearArgs& args);

}  // namespace thinwire
