#include "runtime/quant/grid_search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

constexpr float kLeastStep = 0x1p-100f;  // its inverse and squares of a few of it are finite
constexpr float kMostZero = 0x1p20f;     // fp32 still tells sixteenths of a code apart

// The code of x as a float.
inline float CodeOf(float x, float inverse_step, float zero, float max_code) {
  constexpr float kHalfEven = 0x1.8p23f;  // adding it rounds to an integer below 2^22
  const float position = x * inverse_step + zero;
  const float clamped = std::min(max_code, position > 0.0f ? position : 0.0f);
  return (clamped + kHalfEven) - kHalfEven;
}

float MaxCode(int bits) {
  TW_CHECK(bits >= 1 && bits <= 8);
  return static_cast<float>((1 << bits) - 1);
}

// A step that fp32 can work with where values reach `reach`.
float UsableStep(double step, double reach) {
  const double least = std::max(static_cast<double>(kLeastStep), reach / double{kMostZero});
  return static_cast<float>(std::max(step, least));
}

absl::Status CheckSamples(absl::Span<const float> x, absl::Span<const float> weights) {
  TW_CHECK(weights.empty() || weights.size() == x.size());
  for (size_t t = 0; t < x.size(); ++t) {
    if (!std::isfinite(x[t])) {
      return absl::InvalidArgumentError(
          absl::StrCat("sample ", t, ": ", x[t], ", expected a finite number"));
    }
  }
  for (size_t t = 0; t < weights.size(); ++t) {
    if (!(weights[t] >= 0.0f) || std::isinf(weights[t])) {
      return absl::InvalidArgumentError(absl::StrCat("weight of sample ", t, ": ", weights[t],
                                                     ", expected a finite number >= 0"));
    }
  }
  return absl::OkStatus();
}

// What the samples that weigh anything span.
struct Summary {
  float minimum = std::numeric_limits<float>::infinity();
  float maximum = -std::numeric_limits<float>::infinity();
  double weight = 0.0;
  double mean = 0.0;
};

Summary Summarize(absl::Span<const float> x, absl::Span<const float> weights) {
  Summary summary;
  double sum = 0.0;
  for (size_t t = 0; t < x.size(); ++t) {
    const float weight = weights.empty() ? 1.0f : weights[t];
    if (weight == 0.0f) continue;
    summary.minimum = std::min(summary.minimum, x[t]);
    summary.maximum = std::max(summary.maximum, x[t]);
    summary.weight += static_cast<double>(weight);
    sum += static_cast<double>(weight) * static_cast<double>(x[t]);
  }
  if (summary.weight > 0.0) {
    summary.mean = std::clamp(sum / summary.weight, static_cast<double>(summary.minimum),
                              static_cast<double>(summary.maximum));
  }
  return summary;
}

// The least-squares line through (code, x) of the codes that `grid` gives: x ~= a + s code. With
// `fixed_step`, only a moves. False when the samples do not determine a usable grid.
bool FitLine(absl::Span<const float> x, absl::Span<const float> weights, const Summary& summary,
             bool fixed_step, UniformGrid& grid) {
  const float max_code = MaxCode(grid.bits);
  const float inverse = 1.0f / grid.step;
  double sum_code = 0.0;
  double sum_square = 0.0;
  double sum_x = 0.0;
  double sum_product = 0.0;
  for (size_t t = 0; t < x.size(); ++t) {
    const double weight = weights.empty() ? 1.0 : static_cast<double>(weights[t]);
    const double code = static_cast<double>(CodeOf(x[t], inverse, grid.zero, max_code));
    const double value = static_cast<double>(x[t]) - summary.mean;
    sum_code += weight * code;
    sum_square += weight * code * code;
    sum_x += weight * value;
    sum_product += weight * code * value;
  }
  const double mean_code = sum_code / summary.weight;
  const double mean_x = sum_x / summary.weight;
  if (!fixed_step) {
    const double variance = sum_square / summary.weight - mean_code * mean_code;
    const double covariance = sum_product / summary.weight - mean_code * mean_x;
    if (!(variance > 1e-12) || !(covariance > 0.0)) return false;
    const double reach = std::max(std::abs(static_cast<double>(summary.minimum)),
                                  std::abs(static_cast<double>(summary.maximum)));
    const double step = covariance / variance;
    grid.step = UsableStep(step, reach);
  }
  const auto step = static_cast<double>(grid.step);
  grid.zero = static_cast<float>(mean_code - (mean_x + summary.mean) / step);
  return std::isfinite(grid.zero);
}

// Alternates codes and line while the error falls.
void Refine(absl::Span<const float> x, absl::Span<const float> weights, const Summary& summary,
            bool fixed_step, int rounds, GridFit& fit) {
  for (int i = 0; i < rounds && fit.error > 0.0; ++i) {
    UniformGrid grid = fit.grid;
    if (!FitLine(x, weights, summary, fixed_step, grid)) return;
    const double error = GridError(x, weights, grid);
    if (!(error < fit.error)) return;
    fit = {.grid = grid, .error = error};
  }
}

constexpr int kZeroRefinements = 8;

GridFit FitZeroOf(absl::Span<const float> x, absl::Span<const float> weights,
                  const Summary& summary, int bits, float step) {
  if (summary.weight == 0.0) return {.grid = {.step = step, .zero = 0.0f, .bits = bits}};
  const auto mean = static_cast<float>(summary.mean);
  GridFit best;
  best.grid = CentredGrid(summary.minimum, summary.maximum, step, bits);
  best.error = GridError(x, weights, best.grid);
  Refine(x, weights, summary, true, kZeroRefinements, best);
  GridFit other;
  other.grid = CentredGrid(mean, mean, step, bits);
  other.error = GridError(x, weights, other.grid);
  Refine(x, weights, summary, true, kZeroRefinements, other);
  return other.error < best.error ? other : best;
}

}  // namespace

float RoundToGrid(const UniformGrid& grid, float x) {
  return grid.step * (CodeOf(x, 1.0f / grid.step, grid.zero, MaxCode(grid.bits)) - grid.zero);
}

UniformGrid GridOfRange(float minimum, float maximum, int bits) {
  TW_CHECK_LE(minimum, maximum);
  const auto low = static_cast<double>(minimum);
  const auto high = static_cast<double>(maximum);
  const auto max_code = static_cast<double>(MaxCode(bits));
  if (minimum == maximum) {
    if (std::abs(minimum) < kLeastStep) return {.step = 1.0f, .zero = 0.0f, .bits = bits};
    return {.step = std::abs(minimum), .zero = minimum > 0.0f ? 0.0f : 1.0f, .bits = bits};
  }
  const float step = UsableStep((high - low) / max_code, std::max(std::abs(low), std::abs(high)));
  return {.step = step, .zero = static_cast<float>(-low / static_cast<double>(step)), .bits = bits};
}

UniformGrid CentredGrid(float minimum, float maximum, float step, int bits) {
  TW_CHECK_GT(step, 0.0f);
  const double middle = 0.5 * (static_cast<double>(minimum) + static_cast<double>(maximum));
  const double zero = 0.5 * static_cast<double>(MaxCode(bits)) - middle / static_cast<double>(step);
  return {.step = step, .zero = static_cast<float>(zero), .bits = bits};
}

double GridError(absl::Span<const float> x, absl::Span<const float> weights,
                 const UniformGrid& grid) {
  // Lanes let compilers use vectors without changing the sum; chunks keep fp32 sums short.
  constexpr size_t kLanes = 8;
  constexpr size_t kChunk = 256;
  const float max_code = MaxCode(grid.bits);
  const float inverse = 1.0f / grid.step;
  const auto square = [&](float value) {
    const float error =
        value - grid.step * (CodeOf(value, inverse, grid.zero, max_code) - grid.zero);
    return error * error;
  };
  double sum = 0.0;
  for (size_t begin = 0; begin < x.size(); begin += kChunk) {
    const size_t end = std::min(x.size(), begin + kChunk);
    std::array<float, kLanes> lanes = {};
    size_t t = begin;
    if (weights.empty()) {
      for (; t + kLanes <= end; t += kLanes) {
        for (size_t l = 0; l < kLanes; ++l) lanes[l] += square(x[t + l]);
      }
      for (; t < end; ++t) lanes[t % kLanes] += square(x[t]);
    } else {
      for (; t + kLanes <= end; t += kLanes) {
        for (size_t l = 0; l < kLanes; ++l) lanes[l] += weights[t + l] * square(x[t + l]);
      }
      for (; t < end; ++t) lanes[t % kLanes] += weights[t] * square(x[t]);
    }
    for (const float lane : lanes) sum += static_cast<double>(lane);
  }
  return sum;
}

absl::StatusOr<GridFit> SearchGrid(absl::Span<const float> x, absl::Span<const float> weights,
                                   const GridSearchOptions& options) {
  if (absl::Status s = CheckSamples(x, weights); !s.ok()) return s;
  const Summary summary = Summarize(x, weights);
  if (summary.weight == 0.0) return GridFit{.grid = GridOfRange(0.0f, 0.0f, options.bits)};
  const float low = std::min(summary.minimum, options.minimum);
  const float high = std::max(summary.maximum, options.maximum);
  GridFit best;
  best.grid = GridOfRange(low, high, options.bits);
  best.error = GridError(x, weights, best.grid);
  const double below = summary.mean - static_cast<double>(low);
  const double above = static_cast<double>(high) - summary.mean;
  const double smallest = options.smallest_shrink > 0.0f
                              ? static_cast<double>(options.smallest_shrink)
                          : options.bits <= 2 ? 0.12
                          : options.bits <= 4 ? 0.2
                                              : 0.35;
  const auto factor = [&](int j) {
    return std::pow(smallest, static_cast<double>(j) / std::max(1, options.shrink_steps));
  };
  const auto attempt = [&](int j, int k) {
    const UniformGrid grid =
        GridOfRange(static_cast<float>(summary.mean - factor(j) * below),
                    static_cast<float>(summary.mean + factor(k) * above), options.bits);
    const double error = GridError(x, weights, grid);
    if (error < best.error) best = {.grid = grid, .error = error};
  };
  for (int j = 0; j <= options.shrink_steps && best.error > 0.0; ++j) {
    if (options.two_sided) {
      for (int k = 0; k <= options.shrink_steps; ++k) attempt(j, k);
    } else {
      attempt(j, j);
    }
  }
  Refine(x, weights, summary, false, options.refinements, best);
  return best;
}

std::vector<double> StepErrors(absl::Span<const float> x, absl::Span<const float> weights, int bits,
                               absl::Span<const float> steps) {
  const Summary summary = Summarize(x, weights);
  std::vector<double> errors;
  errors.reserve(steps.size());
  for (const float step : steps) {
    errors.push_back(FitZeroOf(x, weights, summary, bits, step).error);
  }
  return errors;
}

GridFit FitZero(absl::Span<const float> x, absl::Span<const float> weights, int bits, float step) {
  return FitZeroOf(x, weights, Summarize(x, weights), bits, step);
}

std::vector<float> GeometricSteps(float smallest, float largest, int64_t num_steps) {
  TW_CHECK_GE(num_steps, 1);
  TW_CHECK(smallest > 0.0f && smallest <= largest);
  std::vector<float> steps(static_cast<size_t>(num_steps), smallest);
  const double ratio = static_cast<double>(largest) / static_cast<double>(smallest);
  for (int64_t j = 1; j < num_steps; ++j) {
    const double exponent = static_cast<double>(j) / static_cast<double>(num_steps - 1);
    steps[j] = static_cast<float>(static_cast<double>(smallest) * std::pow(ratio, exponent));
  }
  if (num_steps > 1) steps.back() = largest;
  return steps;
}

void EmaRange::Add(float minimum, float maximum) {
  minimum_ = empty_ ? minimum : 0.99f * minimum_ + 0.01f * minimum;
  maximum_ = empty_ ? maximum : 0.99f * maximum_ + 0.01f * maximum;
  empty_ = false;
}

UniformGrid PublishedGrid(float minimum, float maximum, int bits) {
  const float half = (MaxCode(bits) + 1.0f) / 2.0f;
  const float step = std::clamp((maximum - minimum) / (2.0f * half), 1e-4f, 1e4f);
  const float zero = std::clamp(std::nearbyint(-(maximum + minimum) / (2.0f * step)), -1e4f, 1e4f);
  return {.step = step, .zero = zero + half, .bits = bits};
}

}  // namespace thinwire
