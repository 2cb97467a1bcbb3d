// What launches invariant_attention.h's kernels. Private to kernels/attention.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/attention/attention_cuda.h"

namespace thinwire {

// Items of CutIntoInvariantItems and their combines; pages of any kind.
cudaError_t LaunchInvariant(const AttentionCall& call, cudaStream_t stream);

}  // namespace thinwire
