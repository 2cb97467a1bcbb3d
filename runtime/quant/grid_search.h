// Uniform quantisation grids for activations: chosen by error, by range, or as published.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thinwire {

// x ~= step * (code - zero), code = clamp(round(x / step + zero), 0, 2^bits - 1), rounding halves
// to even. step > 0; zero need not be an integer.
struct UniformGrid {
  float step = 1.0f;
  float zero = 0.0f;
  int bits = 8;  // [1, 8]

  float Minimum() const { return -step * zero; }
};

// What x becomes.
float RoundToGrid(const UniformGrid& grid, float x);

// The grid with code 0 at `minimum` and the last at `maximum` (minimum <= maximum, finite): min-max
// ranges, for 8 bits. A single point is kept exactly. A range narrower than 2^-20 of its distance
// from zero gets a coarser step, as fp32 could not tell its codes apart.
UniformGrid GridOfRange(float minimum, float maximum, int bits);

// The grid with this step (> 0) whose codes lie evenly about the middle of [minimum, maximum]: for
// channels that share a cluster's step.
UniformGrid CentredGrid(float minimum, float maximum, float step, int bits);

// sum_t w_t (x_t - x^_t)^2. `weights` is empty (all 1) or as long as x.
double GridError(absl::Span<const float> x, absl::Span<const float> weights,
                 const UniformGrid& grid);

struct GridSearchOptions {
  int bits = 4;

  // Candidates: [m - f (m - low), m + g (high - m)], m the weighted mean, f and g each one of
  // smallest_shrink^(j / shrink_steps), j = 0 .. shrink_steps; all pairs (f, g), or f = g only.
  // smallest_shrink 0: 0.12 for 1 and 2 bits, 0.2 up to 4, 0.35 for more. 0 steps: the range
  // itself.
  int shrink_steps = 15;
  float smallest_shrink = 0.0f;
  bool two_sided = false;

  // [low, high] is the samples' range, widened to these: the range of all tokens where the samples
  // are a few of them.
  float minimum = std::numeric_limits<float>::infinity();
  float maximum = -std::numeric_limits<float>::infinity();

  // Rounds of least squares after that: the best step and zero for the codes of the round before
  // (closed form), as long as the error falls.
  int refinements = 3;
};

struct GridFit {
  UniformGrid grid;
  double error = 0.0;  // GridError of it
};

// The grid of least error, of those named. No samples, or all weights 0: the grid of [0, 0].
// InvalidArgument: NaN or infinity in x, a weight that is negative, NaN or infinite (index named).
absl::StatusOr<GridFit> SearchGrid(absl::Span<const float> x, absl::Span<const float> weights,
                                   const GridSearchOptions& options);

// [steps.size()]: for each step the GridError of FitZero. x and weights must be finite.
std::vector<double> StepErrors(absl::Span<const float> x, absl::Span<const float> weights, int bits,
                               absl::Span<const float> steps);

// A grid with this step (> 0) and a good zero for the samples: codes about the range's middle or
// about the weighted mean, each refined by least squares as above, and the better of the two.
GridFit FitZero(absl::Span<const float> x, absl::Span<const float> weights, int bits, float step);

// num_steps >= 1 steps in geometric progression from smallest to largest, both > 0.
std::vector<float> GeometricSteps(float smallest, float largest, int64_t num_steps);

// The published range statistic (RPTQ, arXiv 2304.01089, as released): minimum and maximum of a
// cluster, a sample (one calibration window) at a time, averaged as 0.99 old + 0.01 new; the first
// sample starts it.
class EmaRange {
 public:
  void Add(float minimum, float maximum);
  float minimum() const { return minimum_; }
  float maximum() const { return maximum_; }
  bool empty() const { return empty_; }

 private:
  float minimum_ = 0.0f;
  float maximum_ = 0.0f;
  bool empty_ = true;
};

// The published grid: s = (max - min) / 2^b in [1e-4, 1e4], z = round(-(max + min) / (2 s)) in
// [-1e4, 1e4], codes in [-2^(b-1), 2^(b-1) - 1]; here shifted to unsigned codes: zero = z +
// 2^(b-1).
UniformGrid PublishedGrid(float minimum, float maximum, int bits);

}  // namespace thinwire
