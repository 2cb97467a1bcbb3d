// What the files of kernels/norm share: argument checks and the CPU backend.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/norm/norm.h"

namespace thinwire {

// InvalidArgument with what NormArgs promises and what was found.
absl::Status CheckNormArgs(const NormArgs& args);

// Checked arguments in host memory, CPU stream, at least one token.
void NormCpu(const NormArgs& args, Stream& stream);
void AddInPlaceCpu(const TensorView& x, const ConstTensorView& delta, Stream& stream);

}  // namespace thinwire
