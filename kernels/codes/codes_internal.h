// What the files of kernels/codes share: argument checks and the backends.
#pragma once

#include "absl/status/status.h"
#include "kernels/codes/codes.h"
#include "kernels/core/stream.h"

namespace thinwire {

// InvalidArgument with what the structs promise and what was found.
absl::Status CheckQuantizeArgs(const QuantizeArgs& args);
absl::Status CheckRoundToCodesArgs(const RoundToCodesArgs& args);

// Checked arguments in host memory, CPU stream, at least one token.
void QuantizeCpu(const QuantizeArgs& args, Stream& stream);
void MaxGainsCpu(const ConstTensorView& x, const float* inverse_step, float* gains, Stream& stream);
void RoundToCodesCpu(const RoundToCodesArgs& args, Stream& stream);

// The same on a GPU, in builds with CUDA.
absl::Status QuantizeCuda(const QuantizeArgs& args, Stream& stream);
absl::Status MaxGainsCuda(const ConstTensorView& x, const ConstTensorView& inverse_step,
                          const TensorView& gains, Stream& stream);
absl::Status RoundToCodesCuda(const RoundToCodesArgs& args, Stream& stream);

// The gain of a row for its RMS or maximum, rounded to fp16.
float RoundGain(double gain);

}  // namespace thinwire
