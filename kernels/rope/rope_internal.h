// What the files of kernels/rope share: the argument check and the backends.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/rope/rope.h"

namespace thinwire {

// InvalidArgument with what RopeArgs promises and what was found.
absl::Status CheckRopeArgs(const RopeArgs& args);

// Checked arguments in host memory, CPU stream.
absl::Status RopeCpu(const RopeArgs& args, Stream& stream);

// The same on a GPU, in builds with CUDA.
absl::Status RopeCuda(const RopeArgs& args, Stream& stream);

}  // namespace thinwire
