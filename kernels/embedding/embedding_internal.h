// What the files of kernels/embedding share: the backends.
#pragma once

#include "kernels/core/stream.h"
#include "kernels/embedding/embedding.h"

namespace thinwire {

// Checked arguments in host memory, CPU stream.
void EmbeddingCpu(const EmbeddingArgs& args, Stream& stream);

// The same on a GPU, in builds with CUDA.
absl::Status EmbeddingCuda(const EmbeddingArgs& args, Stream& stream);

}  // namespace thinwire
