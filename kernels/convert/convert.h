// Conversion between fp32, fp16 and bf16.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// to[i, ...] = from[i, ...], rounded to nearest even where `to` is narrower.
// from, to: same shape, any of fp32, fp16, bf16; rows may be strided; must not overlap.
absl::Status Convert(ConstTensorView from, TensorView to, Stream& stream);

// The loops inside Convert, for other CPU kernels: `n` contiguous elements, vectorised, one thread.
void ConvertToFloat(const void* from, DType from_dtype, float* to, int64_t n);
void ConvertFromFloat(const float* from, void* to, DType to_dtype, int64_t n);

}  // namespace thinwire
