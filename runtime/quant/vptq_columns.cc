#include "runtime/quant/vptq_columns.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "runtime/quant/cholesky.h"

namespace thinwire {
namespace {

constexpr int kDampingRetries = 4;
constexpr double kMaxHalf = 65504.0;

float RoundToHalf(double value) { return ToFloat(ToHalf(static_cast<float>(value))); }

absl::Status Scale(const VptqProblem& problem, const VptqOptions& options, VptqColumns& columns) {
  const int64_t in = problem.in_features, out = problem.out_features;
  columns.scale.assign(static_cast<size_t>(in), 1.0f);
  columns.offset.assign(static_cast<size_t>(in), 0.0f);
  // Row after row, as weights lie; a column's sums are still in the order of its outputs.
  std::vector<double> sums(static_cast<size_t>(in), 0.0), squares(sums);
  std::vector<double> least(sums), most(sums);
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const double w = problem.weights[o * in + i];
      if (!std::isfinite(w)) {
        return absl::InvalidArgumentError(absl::StrCat("weights: expected finite numbers, found ",
                                                       w, " at output ", o, ", input ", i));
      }
      sums[i] += w;
      least[i] = o == 0 ? w : std::min(least[i], w);
      most[i] = o == 0 ? w : std::max(most[i], w);
    }
  }
  if (!options.norm) return absl::OkStatus();
  const bool published = options.recipe == VptqRecipe::kPublished;
  for (int64_t i = 0; i < in; ++i) sums[i] /= static_cast<double>(out);
  for (int64_t o = 0; o < out && !published; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const double deviation = problem.weights[o * in + i] - sums[i];
      squares[i] += deviation * deviation;
    }
  }
  for (int64_t i = 0; i < in; ++i) {
    const double offset = published ? least[i] : sums[i];
    const double scale =
        published ? most[i] - least[i] : std::sqrt(squares[i] / static_cast<double>(out));
    if (std::max(scale, std::fabs(offset)) > kMaxHalf) {
      return absl::InvalidArgumentError(
          absl::StrCat("weights: expected columns whose scale fp16 can hold, found mean ", offset,
                       ", deviation ", scale, " at input ", i));
    }
    columns.offset[i] = RoundToHalf(offset);
    columns.scale[i] = RoundToHalf(scale);
    if (!(columns.scale[i] > 0.0f)) columns.scale[i] = 1.0f;
  }
  return absl::OkStatus();
}

// The Hessian of the scaled columns, D H D, in the order of its diagonal, and its factor.
absl::Status Factorize(const VptqProblem& problem, const VptqOptions& options, VptqColumns& columns,
                       Stream* gpu) {
  const int64_t in = problem.in_features;
  const bool best = options.recipe == VptqRecipe::kBest;
  const bool scaled = best && options.scaled_hessian;
  const auto entry = [&](int64_t i, int64_t j) {
    const double h = problem.hessian[i * in + j];
    return scaled ? h * double{columns.scale[i]} * double{columns.scale[j]} : h;
  };
  columns.order.resize(static_cast<size_t>(in));
  std::iota(columns.order.begin(), columns.order.end(), 0);
  std::stable_sort(columns.order.begin(), columns.order.end(),
                   [&](int64_t a, int64_t b) { return entry(a, a) > entry(b, b); });
  columns.hessian.resize(static_cast<size_t>(in * in));
  double mean = 0.0;
  for (int64_t i = 0; i < in; ++i) mean += entry(i, i) / static_cast<double>(in);
  if (!(mean > 0.0)) mean = 1.0;
  for (int64_t i = 0; i < in; ++i) {
    for (int64_t j = 0; j < in; ++j) {
      columns.hessian[i * in + j] = entry(columns.order[i], columns.order[j]) / mean;
    }
  }
  const auto damping = best ? Damping::kRelative : Damping::kMeanDiagonal;
  double damp = options.damping;
  for (int attempt = 0;; ++attempt, damp *= 10.0) {
    columns.factor = columns.hessian;
    DampHessian(damping, damp, in, absl::MakeSpan(columns.factor));
    const absl::Status status = UpperFactorOfInverse(in, absl::MakeSpan(columns.factor), gpu);
    if (status.ok()) break;
    if (attempt == kDampingRetries) return status;
  }
  DampHessian(Damping::kRelative, 0.0, in, absl::MakeSpan(columns.hessian));  // dead columns
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<VptqColumns> PrepareColumns(const VptqProblem& problem, const VptqOptions& options,
                                           Stream* gpu) {
  VptqColumns columns;
  TW_RETURN_IF_ERROR(Scale(problem, options, columns));
  TW_RETURN_IF_ERROR(Factorize(problem, options, columns, gpu));
  return columns;
}

}  // namespace thinwire
