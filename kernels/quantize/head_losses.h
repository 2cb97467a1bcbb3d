// What errors of attention heads become behind the projection that reads them, on a GPU.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"

namespace thinwire {

// losses[h] += |E_h W_h^T|^2, E = coded - exact: E_h its columns [h head_dim, (h + 1) head_dim),
// W_h those of the weights. Products in fp32, squares added up in double, in an order of their own.
struct HeadLossArgs {
  // In the GPU's memory, dense.
  const float* exact = nullptr;   // [num_rows, width]
  const float* coded = nullptr;   // [num_rows, width]
  const float* weight = nullptr;  // [out_features, width]
  int64_t num_rows = 0, width = 0, head_dim = 0, out_features = 0;
  absl::Span<double> losses;  // [width / head_dim], in host memory
};

// Done on return. Takes the stream's scratch: 4 num_rows (width + out_features) bytes and some.
absl::Status AddHeadLossesOnGpu(const HeadLossArgs& args, Stream& stream);

}  // namespace thinwire
