// What ranks that share the calibration windows tell each other. Results are the same bits on every
// rank: parts are added in pairs of ranks, pairs of pairs and so on.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// values[i] becomes its sum over ranks. Collective.
absl::Status SumOverRanks(absl::Span<double> values, Communicator& world, Stream& stream);

// minima[i] and maxima[i] become those over all ranks. Collective.
absl::Status RangeOverRanks(absl::Span<float> minima, absl::Span<float> maxima, Communicator& world,
                            Stream& stream);

// All ranks' values, one rank after the other. Collective.
absl::StatusOr<std::vector<float>> ConcatenateOverRanks(const std::vector<float>& values,
                                                        Communicator& world, Stream& stream);

}  // namespace thinwire
