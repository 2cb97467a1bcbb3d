// Columns of a matrix in another order.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// out[t, j] = x[t, order[j]]. x: [num_tokens, width] fp32 | fp16 | bf16; order: [width] int32, each
// in [0, width) (not checked); out: like x. Rows may be strided; must not overlap. num_tokens may
// be 0. For checkpoints whose weights are grouped by scattered channels: the price of a reordering
// that nobody upstream could take over.
absl::Status GatherColumns(ConstTensorView x, ConstTensorView order, TensorView out,
                           Stream& stream);

}  // namespace thinwire
