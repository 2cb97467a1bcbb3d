#include "runtime/quant/asymmetric_target.h"

#include <algorithm>

#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"
#include "kernels/quantize/hessian_products.h"

namespace thinwire {

std::vector<float> AsymmetricTarget(int64_t out_features, int64_t in_features,
                                    absl::Span<const float> weights,
                                    absl::Span<const double> target_shift,
                                    absl::Span<const double> factor, double strength,
                                    ThreadPool& pool) {
  constexpr int64_t kRows = 64;  // whatever the number of threads
  const int64_t in = in_features;
  TW_CHECK_EQ(static_cast<int64_t>(weights.size()), out_features * in);
  TW_CHECK_EQ(static_cast<int64_t>(target_shift.size()), in * in);
  TW_CHECK_EQ(static_cast<int64_t>(factor.size()), in * in);
  std::vector<float> target(weights.size());
  pool.ParallelForDynamic((out_features + kRows - 1) / kRows, [&](int64_t tile) {
    const int64_t first = tile * kRows;
    const int64_t rows = std::min(kRows, out_features - first);
    const float* w = weights.data() + first * in;
    std::vector<double> a(w, w + rows * in);
    std::vector<double> b(a.size());
    // H^-1 = U^T U
    DgemmNN(rows, in, in, a.data(), in, target_shift.data(), in, 0.0, b.data(), in);
    DgemmNT(rows, in, in, b.data(), in, factor.data(), in, 0.0, a.data(), in);
    DgemmNN(rows, in, in, a.data(), in, factor.data(), in, 0.0, b.data(), in);
    for (int64_t i = 0; i < rows * in; ++i) {
      target[first * in + i] = static_cast<float>(static_cast<double>(w[i]) + strength * b[i]);
    }
  });
  return target;
}

absl::StatusOr<std::vector<float>> AsymmetricTarget(int64_t out_features, int64_t in_features,
                                                    absl::Span<const float> weights,
                                                    absl::Span<const double> target_shift,
                                                    absl::Span<const double> factor,
                                                    double strength, ThreadPool& pool,
                                                    Stream* gpu) {
  if constexpr (kHasCuda) {
    if (gpu != nullptr) {
      std::vector<float> target(weights.size());
      TW_RETURN_IF_ERROR(MovedTargetOnGpu(out_features, in_features, weights, target_shift, factor,
                                          strength, absl::MakeSpan(target), *gpu));
      return target;
    }
  }
  return AsymmetricTarget(out_features, in_features, weights, target_shift, factor, strength, pool);
}

}  // namespace thinwire
