// What the files of kernels/norm share: argument checks and the backends.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/norm/norm.h"

namespace thinwire {

// InvalidArgument with what the structs promise and what was found.
absl::Status CheckNormArgs(const NormArgs& args);
absl::Status CheckNormCodesArgs(const NormCodesArgs& args);

// Checked arguments in host memory, CPU stream, at least one token. ResourceExhausted without
// memory for scratch.
absl::Status NormCpu(const NormArgs& args, Stream& stream);
absl::Status NormCodesCpu(const NormCodesArgs& args, Stream& stream);
void AddInPlaceCpu(const TensorView& x, const ConstTensorView& delta, Stream& stream);
void ScaleInPlaceCpu(const TensorView& x, const ConstTensorView& weight,
                     const ConstTensorView& bias, Stream& stream);

// The same on a GPU, in builds with CUDA.
absl::Status NormCuda(const NormArgs& args, Stream& stream);
absl::Status NormCodesCuda(const NormCodesArgs& args, Stream& stream);
absl::Status AddInPlaceCuda(const TensorView& x, const ConstTensorView& delta, Stream& stream);
absl::Status ScaleInPlaceCuda(const TensorView& x, const ConstTensorView& weight,
                              const ConstTensorView& bias, Stream& stream);

}  // namespace thinwire
