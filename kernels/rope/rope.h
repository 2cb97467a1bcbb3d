// Rotary position embedding (Su et al. 2021, arXiv 2104.09864, eq. 34), half-split layout.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// For each token t, head h and i < head_dim/2, with a = fp32(positions[t] * inv_freq[i]):
//   (x[i], x[i + head_dim/2]) <- (x[i] cos a - x[i + head_dim/2] sin a,
//                                 x[i + head_dim/2] cos a + x[i] sin a)
// This is the layout of Hugging Face checkpoints (rotate_half); the paper's is interleaved.
struct RopeArgs {
  TensorView x;               // [num_tokens, num_heads * head_dim] fp32 | fp16 | bf16, in place;
                              // rows may be strided
  ConstTensorView positions;  // [num_tokens] int32
  ConstTensorView inv_freq;   // [head_dim / 2] fp32
  int64_t num_heads = 0;
  int64_t head_dim = 0;
};

absl::Status Rope(const RopeArgs& args, Stream& stream);

// The definition, in double after the fp32 angle, for tests.
absl::Status RopeReference(const RopeArgs& args);

}  // namespace thinwire
