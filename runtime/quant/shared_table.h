// One level table for many channels, each with its own step and zero.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/thread_pool.h"
#include "runtime/quant/grid_search.h"
#include "runtime/quant/level_table.h"

namespace thinwire {

struct SharedTableProblem {
  // Samples of each channel.
  std::vector<absl::Span<const float>> channels;

  // Of the samples, by position, the same for all channels; empty: all 1.
  absl::Span<const float> sample_weights;

  // [channels], >= 0: what a channel's squared error counts; empty: all 1.
  absl::Span<const double> channel_weights;

  // [channels]: grids to begin with, all of the same bits; their first and last codes are where
  // the first and last levels begin.
  absl::Span<const UniformGrid> grids;

  int num_levels = 16;  // [2, 256]
  int rounds = 12;
};

struct SharedTable {
  LevelTable table;                // error: the weighted sum over channels
  std::vector<UniformGrid> grids;  // [channels] of 8 bits: what the table's codes stand for
  std::vector<double> errors;      // [channels]: sum_t w_t (x_t - x^_t)^2, channel weights left out
};

// Fits levels and grids in turns: optimal levels for the channels' grids (CodeHistogram), half as
// far again as they reach now, then each channel's least-squares step and zero for those levels.
// Returns the best of what it saw, which is never worse than evenly spaced levels on the grids
// given. The same for any number of threads. InvalidArgument names channel and sample of a NaN,
// infinity or negative weight.
absl::StatusOr<SharedTable> FitSharedTable(const SharedTableProblem& problem, ThreadPool& pool);

}  // namespace thinwire
