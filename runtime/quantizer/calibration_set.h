// The token ids that a model is calibrated on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "runtime/checkpoint/thinwire_file.h"

namespace thinwire {

struct CalibrationSet {
  std::vector<std::vector<int32_t>> windows;  // each of seqlen ids
  CalibrationInfo info;
};

// `num_samples` windows of `seqlen` ids, evenly spaced over `ids`, on multiples of seqlen where
// there are enough. InvalidArgument: fewer ids than one window, or than num_samples windows: the
// message says how many there are. `source` names them in messages and in thinwire.json; `bytes`
// are what its hash is of.
absl::StatusOr<CalibrationSet> CutCalibrationSet(const std::vector<int32_t>& ids,
                                                 int64_t num_samples, int64_t seqlen,
                                                 const std::string& source,
                                                 absl::Span<const std::byte> bytes);

// Windows that the model itself made, at least one, all as long: source "self", and the hash is of
// their ids as little-endian 4-byte integers, one window after the other.
CalibrationSet MakeSelfCalibrationSet(std::vector<std::vector<int32_t>> windows);

// Every rank's set becomes rank 0's. Collective.
absl::Status BroadcastCalibrationSet(CalibrationSet& set, Communicator& world, Stream& stream);

}  // namespace thinwire
