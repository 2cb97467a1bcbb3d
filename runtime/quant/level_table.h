// A table of few levels out of 256 uniform ones: non-uniform codes that run as bytes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/quant/grid_search.h"

namespace thinwire {

struct LevelTable {
  std::vector<uint8_t> levels;         // ascending codes of the fine grid
  std::array<uint8_t, 256> snap = {};  // fine code -> the nearest of `levels`, lower of equals
  double error = 0.0;                  // sum of w (x - x^)^2 of the samples it was made from
};

// What samples weigh on each code of a fine grid of 8 bits: enough to choose levels for all of
// them. Adding channels of one cluster together makes their common table.
class CodeHistogram {
 public:
  // Adds samples x, each counting importance * its weight; `weights` is empty (all 1) or as long as
  // x. grid.bits must be 8. Errors count in units of x. InvalidArgument: NaN or infinity in x, a
  // weight that is negative, NaN or infinite (index named); nothing was added then.
  absl::Status Add(absl::Span<const float> x, absl::Span<const float> weights,
                   const UniformGrid& grid, double importance = 1.0);
  void Merge(const CodeHistogram& other);

  // The `num_levels` in [1, 256] levels that minimise the summed squared error when every fine code
  // goes to its nearest level: exactly, by dynamic programming over pairs of neighbouring levels
  // (Lloyd-Max iterations stop at a local minimum). Without samples: levels spread evenly.
  LevelTable OptimalLevels(int num_levels) const;

 private:
  struct Bin {
    double weight = 0.0;    // sum of w step^2
    double offset = 0.0;    // sum of w step^2 (x in steps - code)
    double residual = 0.0;  // sum of w step^2 (x in steps - code)^2
  };
  class Sums;

  std::array<Bin, 256> bins_ = {};
};

// Samples on one fine grid, in one call.
absl::StatusOr<LevelTable> OptimalLevels(absl::Span<const float> x, absl::Span<const float> weights,
                                         const UniformGrid& fine, int num_levels);

// snap for given ascending, distinct levels (at least one).
std::array<uint8_t, 256> SnapTable(absl::Span<const uint8_t> levels);

}  // namespace thinwire
