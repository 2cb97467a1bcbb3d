// For tests of norms: rows to normalise, orders of channels, and how far fp32 may be off.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/norm/norm.h"

namespace thinwire {

inline constexpr double kEps = 0x1p-24;  // half an ulp of fp32, relative

// Like the activations of large OPT models: most channels of order 1, a few 100 times larger, and a
// common offset in all.
inline std::vector<float> Activations(int64_t rows, int64_t columns, std::mt19937& random) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto column = static_cast<int64_t>(i) % columns;
    const float scale = column % 97 == 5 ? 100.0f : 1.0f;
    values[i] = scale * std::normal_distribution<float>(0.0f, 1.0f)(random) + 8.0f * (scale - 0.5f);
  }
  return values;
}

// A random order of n channels.
inline std::vector<int32_t> Shuffled(int64_t n, std::mt19937& random) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

// How far fp32 sums may carry the kernel from the definition, for one row x (after the addition),
// with y = (x - mean) / sqrt(variance + epsilon):
//  - each lane adds at most hidden / 16 + 3 terms in a chain (four accumulators of at least four
//    lanes), then 2 accumulators and at most 4 lanes deep, so that a sum of terms t is off by at
//    most depth * eps * sum |t|, depth = hidden / 16 + 12;
//  - so the mean is off by m = (depth + 1) * eps * mean |x|, which moves y by m / sd;
//  - the variance is off by (depth + 4) * eps relative, and by m^2 absolute, which move y by half
//    of that relative to y;
//  - the rest is a handful of roundings: of x - mean (eps * (|x - mean| + m)), root, quotient and
//    products.
struct RowBound {
  double mean = 0.0;
  double shift = 0.0;     // absolute error of y
  double relative = 0.0;  // relative error of y

  RowBound(NormKind kind, const float* x, int64_t hidden, double epsilon) {
    const auto n = static_cast<double>(hidden);
    double magnitude = 0.0;
    double variance = 0.0;
    for (int64_t i = 0; i < hidden; ++i) {
      if (kind == NormKind::kLayerNorm) mean += x[i] / n;
      magnitude += std::fabs(x[i]) / n;
    }
    for (int64_t i = 0; i < hidden; ++i) variance += (x[i] - mean) * (x[i] - mean) / n;
    const double depth = n / 16 + 12;
    const double m = kind == NormKind::kLayerNorm ? (depth + 1) * kEps * magnitude : 0.0;
    shift = m / std::sqrt(variance + epsilon);
    relative = ((depth + 4) * kEps + m * m / (variance + epsilon)) / 2 + 6 * kEps;
  }
};

}  // namespace thinwire
