#include "runtime/quant/column_fold.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"

namespace thinwire {
namespace {

// Values raised to 1e-3 of their median; all 1 where that is 0.
std::vector<double> Floored(absl::Span<const double> values) {
  std::vector<double> sorted(values.begin(), values.end());
  const auto middle = sorted.begin() + static_cast<int64_t>(sorted.size()) / 2;
  std::nth_element(sorted.begin(), middle, sorted.end());
  double least = 1e-3 * *middle;
  if (!(least > 0.0)) {  // most are 0: by the largest instead
    least = 1e-3 * *std::max_element(sorted.begin(), sorted.end());
  }
  if (!(least > 0.0)) least = 1.0;
  std::vector<double> floored(values.begin(), values.end());
  for (double& value : floored) value = std::max(value, least);
  return floored;
}

}  // namespace

std::vector<double> ColumnFold(absl::Span<const double> rms, absl::Span<const double> norm,
                               double alpha, double target_norm) {
  TW_CHECK_EQ(rms.size(), norm.size());
  if (rms.empty()) return {};
  const std::vector<double> of_input = Floored(rms);
  const std::vector<double> of_weights = Floored(norm);
  std::vector<double> fold(rms.size());
  double sum = 0.0;
  for (size_t i = 0; i < fold.size(); ++i) {
    fold[i] = alpha * std::log(of_input[i]) - (1.0 - alpha) * std::log(of_weights[i]);
    sum += fold[i] + std::log(of_weights[i]);
  }
  const double shift = std::log(target_norm) - sum / static_cast<double>(fold.size());
  for (double& value : fold) value = std::exp(value + shift);
  return fold;
}

std::vector<double> ColumnNorms(absl::Span<const float> weights, int64_t width) {
  std::vector<double> norms(static_cast<size_t>(width), 0.0);
  if (width == 0) return norms;
  TW_CHECK_EQ(static_cast<int64_t>(weights.size()) % width, 0);
  for (size_t row = 0; row < weights.size(); row += static_cast<size_t>(width)) {
    for (int64_t i = 0; i < width; ++i) {
      const auto weight = static_cast<double>(weights[row + i]);
      norms[i] += weight * weight;
    }
  }
  for (double& norm : norms) norm = std::sqrt(norm);
  return norms;
}

void FoldHessian(absl::Span<const double> fold, absl::Span<double> hessian) {
  const size_t width = fold.size();
  TW_CHECK_EQ(hessian.size(), width * width);
  for (size_t i = 0; i < width; ++i) {
    for (size_t j = 0; j < width; ++j) hessian[i * width + j] /= fold[i] * fold[j];
  }
}

void FoldFactor(absl::Span<const double> fold, absl::Span<double> factor) {
  const size_t width = fold.size();
  TW_CHECK_EQ(factor.size(), width * width);
  for (size_t i = 0; i < width; ++i) {
    for (size_t j = i; j < width; ++j) factor[i * width + j] *= fold[j];
  }
}

}  // namespace thinwire
