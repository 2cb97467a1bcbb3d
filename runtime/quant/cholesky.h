// The triangular factor of an inverse Hessian that GPTQ walks along.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"

namespace thinwire {

enum class Damping {
  kMeanDiagonal,  // H_ii += damp * mean(diag H): as published (Frantar et al., arXiv 2210.17323)
  kRelative,      // H_ii += damp * H_ii: what a rescaling of channels leaves as it is
};

// Damps `hessian` [width, width] in place. A dead channel (H_ii == 0) gets H_ii = 1 and zeros
// beside, with either kind: its weights then keep their round-to-nearest codes. The mean is over
// the diagonal as it came.
void DampHessian(Damping kind, double damp, int64_t width, absl::Span<double> hessian);

// `matrix` [width, width], symmetric positive definite (only the upper triangle is read), becomes
// the upper triangular U with matrix^-1 = U^T U, zeros below the diagonal. In double, on the
// calling thread: 2/3 width^3 operations; the same bits every time.
//
// FailedPrecondition names the pivot's channel and its value's defect when the matrix is not
// positive definite or has a NaN or infinity (on the diagonal or met on the way); `matrix` is
// destroyed then. Callers damp more and try again, a bounded number of times.
//
// `gpu`: a GPU's stream, where it is done then (UpperFactorOfInverseOnGpu); null: here.
absl::Status UpperFactorOfInverse(int64_t width, absl::Span<double> matrix, Stream* gpu = nullptr);

}  // namespace thinwire
