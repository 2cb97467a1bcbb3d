#include "runtime/quant/shared_table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr float kWiden = 1.5f;

// What the codes of one channel are worth with a table.
struct Fit {
  UniformGrid grid;
  double error = 0.0;
};

size_t FineCode(const UniformGrid& grid, float inverse_step, float x) {
  constexpr float kHalfEven = 0x1.8p23f;  // adding it rounds to an integer below 2^22
  const float position = x * inverse_step + grid.zero;
  const float clamped = std::min(255.0f, position > 0.0f ? position : 0.0f);
  return static_cast<size_t>(static_cast<int>((clamped + kHalfEven) - kHalfEven));
}

double TableError(absl::Span<const float> x, absl::Span<const float> weights,
                  const UniformGrid& grid, const std::array<uint8_t, 256>& snap) {
  std::array<float, 256> values;
  for (size_t code = 0; code < values.size(); ++code) {
    values[code] = grid.step * (static_cast<float>(snap[code]) - grid.zero);
  }
  const float inverse = 1.0f / grid.step;
  double sum = 0.0;
  for (size_t t = 0; t < x.size(); ++t) {
    const auto difference = static_cast<double>(x[t] - values[FineCode(grid, inverse, x[t])]);
    const double weight = weights.empty() ? 1.0 : static_cast<double>(weights[t]);
    sum += weight * difference * difference;
  }
  return sum;
}

// The least-squares line through (snapped code, x), where it lowers the error.
Fit Regress(absl::Span<const float> x, absl::Span<const float> weights, const Fit& from,
            const std::array<uint8_t, 256>& snap) {
  const float inverse = 1.0f / from.grid.step;
  double weight_sum = 0.0;
  double sum_code = 0.0;
  double sum_square = 0.0;
  double sum_x = 0.0;
  double sum_product = 0.0;
  const double origin = x.empty() ? 0.0 : static_cast<double>(x[0]);  // against cancellation
  for (size_t t = 0; t < x.size(); ++t) {
    const double weight = weights.empty() ? 1.0 : static_cast<double>(weights[t]);
    const double code = snap[FineCode(from.grid, inverse, x[t])];
    const double value = static_cast<double>(x[t]) - origin;
    weight_sum += weight;
    sum_code += weight * code;
    sum_square += weight * code * code;
    sum_x += weight * value;
    sum_product += weight * code * value;
  }
  if (!(weight_sum > 0.0)) return from;
  const double mean_code = sum_code / weight_sum;
  const double mean_x = sum_x / weight_sum;
  const double variance = sum_square / weight_sum - mean_code * mean_code;
  const double covariance = sum_product / weight_sum - mean_code * mean_x;
  if (!(variance > 1e-9) || !(covariance > 0.0)) return from;
  const double step = covariance / variance;
  Fit fit;
  fit.grid.step = static_cast<float>(step);
  fit.grid.zero = static_cast<float>(mean_code - (mean_x + origin) / step);
  if (!std::isnormal(fit.grid.step) || !(std::abs(fit.grid.zero) < 0x1p20f)) return from;
  fit.error = TableError(x, weights, fit.grid, snap);
  return fit.error < from.error ? fit : from;
}

// The grid on which codes [low, high] of `grid` are [0, 255].
UniformGrid Stretched(const UniformGrid& grid, float low, float high) {
  const float ratio = (high - low) / 255.0f;
  return {.step = grid.step * ratio, .zero = (grid.zero - low) / ratio, .bits = 8};
}

class Fitter {
 public:
  Fitter(const SharedTableProblem& problem, ThreadPool& pool)
      : problem_(problem), pool_(pool), fits_(problem.channels.size()) {}

  absl::StatusOr<SharedTable> Run() {
    std::vector<uint8_t> levels(static_cast<size_t>(problem_.num_levels));
    for (int i = 0; i < problem_.num_levels; ++i) {
      levels[i] = static_cast<uint8_t>(
          std::lround(static_cast<double>(i) * 255.0 / (problem_.num_levels - 1)));
    }
    for (size_t c = 0; c < fits_.size(); ++c) {
      const UniformGrid& grid = problem_.grids[c];
      fits_[c].grid = Stretched(grid, 0.0f, static_cast<float>((1 << grid.bits) - 1));
    }
    TW_RETURN_IF_ERROR(Histogram().status());  // checks the samples
    SetLevels(levels);
    for (int round = 0; round < problem_.rounds; ++round) {
      const float margin = 0.5f * (kWiden - 1.0f) * 255.0f;
      for (Fit& fit : fits_) fit.grid = Stretched(fit.grid, -margin, 255.0f + margin);
      levels = Histogram()->OptimalLevels(problem_.num_levels).levels;
      const float low = levels.front();
      const float high = levels.back();
      if (low == high) break;
      for (Fit& fit : fits_) fit.grid = Stretched(fit.grid, low, high);
      for (uint8_t& level : levels) {
        level = static_cast<uint8_t>(
            std::lround((static_cast<float>(level) - low) * 255.0f / (high - low)));
      }
      SetLevels(levels);
      SetLevels(Histogram()->OptimalLevels(problem_.num_levels).levels);
    }
    return std::move(best_);
  }

 private:
  absl::StatusOr<CodeHistogram> Histogram() {
    std::vector<CodeHistogram> parts(fits_.size());
    std::vector<absl::Status> statuses(fits_.size());
    pool_.ParallelForDynamic(static_cast<int64_t>(fits_.size()), [&](int64_t c) {
      statuses[c] =
          parts[c].Add(problem_.channels[c], problem_.sample_weights, fits_[c].grid, Importance(c));
    });
    CodeHistogram whole;
    for (size_t c = 0; c < fits_.size(); ++c) {
      TW_RETURN_IF_ERROR(Annotate(statuses[c], absl::StrCat("channel ", c)));
      whole.Merge(parts[c]);
    }
    return whole;
  }

  // Fits every channel's grid to the levels and keeps the whole where it is the best so far.
  void SetLevels(const std::vector<uint8_t>& levels) {
    const std::array<uint8_t, 256> snap = SnapTable(levels);
    pool_.ParallelForDynamic(static_cast<int64_t>(fits_.size()), [&](int64_t c) {
      Fit& fit = fits_[c];
      fit.error = TableError(problem_.channels[c], problem_.sample_weights, fit.grid, snap);
      fit = Regress(problem_.channels[c], problem_.sample_weights, fit, snap);
    });
    double error = 0.0;
    for (size_t c = 0; c < fits_.size(); ++c) error += Importance(c) * fits_[c].error;
    if (!best_.table.levels.empty() && !(error < best_.table.error)) return;
    best_.table = {.levels = levels, .snap = snap, .error = error};
    best_.grids.clear();
    best_.errors.clear();
    for (const Fit& fit : fits_) {
      best_.grids.push_back(fit.grid);
      best_.errors.push_back(fit.error);
    }
  }

  double Importance(size_t c) const {
    return problem_.channel_weights.empty() ? 1.0 : problem_.channel_weights[c];
  }

  const SharedTableProblem& problem_;
  ThreadPool& pool_;
  std::vector<Fit> fits_;
  SharedTable best_;
};

}  // namespace

absl::StatusOr<SharedTable> FitSharedTable(const SharedTableProblem& problem, ThreadPool& pool) {
  TW_CHECK(problem.num_levels >= 2 && problem.num_levels <= 256);
  TW_CHECK_EQ(problem.grids.size(), problem.channels.size());
  TW_CHECK(problem.channel_weights.empty() ||
           problem.channel_weights.size() == problem.channels.size());
  return Fitter(problem, pool).Run();
}

}  // namespace thinwire
