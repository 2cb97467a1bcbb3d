// What the files of kernels/embedding share: the CPU backend.
#pragma once

#include "kernels/core/stream.h"
#include "kernels/embedding/embedding.h"

namespace thinwire {

// Checked arguments in host memory, CPU stream.
void EmbeddingCpu(const EmbeddingArgs& args, Stream& stream);

}  // namespace thinwire
