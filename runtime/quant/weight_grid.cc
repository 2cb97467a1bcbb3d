#include "runtime/quant/weight_grid.h"

#include <array>
#include <cmath>
#include <limits>

#include "kernels/core/float16.h"

namespace thinwire {
namespace {

constexpr float kLocalChanges[] = {0.0f, -0.1f, -0.05f, 0.05f, 0.1f};

WeightGrid GridOf(float low, float high, float max_code) {
  WeightGrid grid;
  if (low == high) return grid;
  grid.scale = ToFloat(ToHalf((high - low) / max_code));
  if (grid.scale == 0.0f) grid.scale = 0x1p-24f;
  grid.zero = std::min(max_code, std::nearbyint(-low / grid.scale));
  return grid;
}

// sum_i h_i |w_i - w^_i|^power. Lanes, so that compilers may use vectors without changing the sum.
double ErrorOf(const WeightGrid& grid, const float* w, const float* h, int64_t n, float max_code,
               float power) {
  constexpr int64_t kLanes = 8;
  std::array<float, kLanes> lanes = {};
  const auto error = [&](int64_t i) {
    const float difference = w[i] - grid.scale * (NearestCode(grid, w[i], max_code) - grid.zero);
    return difference * difference;
  };
  if (power != 2.0f) {
    double sum = 0.0;
    const double half = 0.5 * static_cast<double>(power);
    for (int64_t i = 0; i < n; ++i) {
      const double weight = h == nullptr ? 1.0 : static_cast<double>(h[i]);
      sum += weight * std::pow(static_cast<double>(error(i)), half);
    }
    return sum;
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    if (h == nullptr) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += error(i + l);
    } else {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += h[i + l] * error(i + l);
    }
  }
  for (; i < n; ++i) lanes[i % kLanes] += (h == nullptr ? 1.0f : h[i]) * error(i);
  double sum = 0.0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

}  // namespace

WeightGrid FitWeightGrid(const float* w, const float* h, int64_t n,
                         const WeightGridOptions& options) {
  const auto max_code = static_cast<float>((1 << options.bits) - 1);
  float low = 0.0f;
  float high = 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, w[i]);
    high = std::max(high, w[i]);
  }
  WeightGrid best = GridOf(low, high, max_code);
  if (options.shrink_steps == 0 || std::isinf(best.scale)) return best;
  double least = ErrorOf(best, w, h, n, max_code, options.error_power);
  const auto attempt = [&](float of_low, float of_high) {
    const WeightGrid grid = GridOf(of_low * low, of_high * high, max_code);
    const double error = ErrorOf(grid, w, h, n, max_code, options.error_power);
    if (!(error < least)) return false;
    least = error;
    best = grid;
    return true;
  };
  float factor = 1.0f;
  for (int j = 1; j <= options.shrink_steps; ++j) {
    const float shrunk = 1.0f - static_cast<float>(j) * (1.0f - options.smallest_shrink) /
                                    static_cast<float>(options.shrink_steps);
    if (attempt(shrunk, shrunk)) factor = shrunk;
  }
  if (!options.local_search) return best;
  for (const float below : kLocalChanges) {
    for (const float above : kLocalChanges) {
      attempt(std::min(1.0f, factor + below), std::min(1.0f, factor + above));
    }
  }
  return best;
}

}  // namespace thinwire
