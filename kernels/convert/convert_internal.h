// The CUDA backend of kernels/convert, in builds with CUDA. Private to the folder.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// Checked arguments on the stream's device, at least one element.
absl::Status ConvertCuda(const ConstTensorView& from, const TensorView& to, Stream& stream);
absl::Status GatherColumnsCuda(const ConstTensorView& x, const ConstTensorView& order,
                               const TensorView& out, Stream& stream);

}  // namespace thinwire
