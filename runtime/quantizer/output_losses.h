// What errors in the attention's output become behind o_proj.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// By head h: |E_h W_h^T|^2, E = coded - exact, [num_tokens, width] fp32, dense; W: weight
// [out_features, width] fp32; of both the columns [h head_dim, (h + 1) head_dim). All on the
// stream's device; `coded` becomes E on the CPU. Products in fp32, squares added up in double.
absl::StatusOr<std::vector<double>> HeadLosses(ConstTensorView exact, TensorView coded,
                                               ConstTensorView weight, int64_t head_dim,
                                               Stream& stream);

}  // namespace thinwire
