#include "runtime/quant/cholesky.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/linear/blas.h"
#include "kernels/quantize/inverse_factor.h"

namespace thinwire {

void DampHessian(Damping kind, double damp, int64_t width, absl::Span<double> hessian) {
  TW_CHECK_EQ(static_cast<int64_t>(hessian.size()), width * width);
  double mean = 0.0;
  for (int64_t i = 0; i < width; ++i) {
    mean += hessian[i * width + i] / static_cast<double>(width);
  }
  for (int64_t i = 0; i < width; ++i) {
    double& diagonal = hessian[i * width + i];
    if (diagonal == 0.0) {
      for (int64_t j = 0; j < width; ++j) {
        hessian[i * width + j] = 0.0;
        hessian[j * width + i] = 0.0;
      }
      diagonal = 1.0;
    } else {
      diagonal += damp * (kind == Damping::kRelative ? diagonal : mean);
    }
  }
}

absl::Status UpperFactorOfInverse(int64_t width, absl::Span<double> matrix, Stream* gpu) {
  TW_CHECK_EQ(static_cast<int64_t>(matrix.size()), width * width);
  if constexpr (kHasCuda) {
    if (gpu != nullptr) return UpperFactorOfInverseOnGpu(width, matrix, *gpu);
  }
  const auto refuse = [](int64_t channel, double pivot) {
    return absl::FailedPreconditionError(
        absl::StrCat("Hessian of channel ", channel, ": pivot ", pivot,
                     ", expected a positive finite one: not positive definite, damp it more"));
  };
  for (int64_t i = 0; i < width; ++i) {
    const double diagonal = matrix[i * width + i];
    if (!(diagonal > 0.0) || std::isinf(diagonal)) return refuse(i, diagonal);
  }
  // With the order of channels reversed, J H J = L L^T; so H = R R^T with R = J L J upper
  // triangular, and U = R^-1 = J L^-1 J. Reversing rows and columns reverses the memory.
  std::reverse(matrix.begin(), matrix.end());
  const int64_t failed = CholeskyFactor(width, matrix.data());
  if (failed >= 0) return refuse(width - 1 - failed, matrix[failed * (width + 1)]);
  for (int64_t i = 0; i < width; ++i) {
    const double pivot = matrix[i * (width + 1)];
    if (!(pivot > 0.0) || std::isinf(pivot)) return refuse(width - 1 - i, pivot);
  }
  InvertLowerTriangle(width, matrix.data());
  std::reverse(matrix.begin(), matrix.end());
  for (int64_t i = 0; i < width; ++i) {
    std::fill_n(matrix.begin() + i * width, i, 0.0);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
