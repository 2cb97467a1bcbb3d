// The triangular factor of an inverse Hessian on a GPU.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"

namespace thinwire {

// `matrix` [width, width] in host memory, symmetric positive definite, becomes the upper triangular
// U with matrix^-1 = U^T U, zeros below the diagonal; in double. 16 width^2 bytes on the GPU, whose
// stream it waits for; the same bits every time on GPUs of one kind.
//
// FailedPrecondition names the pivot's channel and its value where the matrix is not positive
// definite or has a NaN or infinity, ResourceExhausted what asked for memory; `matrix` is as it was
// then.
absl::Status UpperFactorOfInverseOnGpu(int64_t width, absl::Span<double> matrix, Stream& stream);

}  // namespace thinwire
