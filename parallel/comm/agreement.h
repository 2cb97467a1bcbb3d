// Ranks agree on whether all of them succeeded, and find out where they differ.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// Collective. Every rank passes its own status; all return OK when all are, and otherwise the
// status of the lowest rank that failed (messages up to 1000 bytes), prefixed by "rank N: " where
// only some ranks fail. So a file that one rank cannot read ends the job on all of them with the
// same words.
absl::Status AgreeOnStatus(const absl::Status& mine, Communicator& world, Stream& stream);

// Something that has to be the same on all ranks: a flag, a file's digest, a version.
struct NamedValue {
  std::string name;
  std::string value;
};

// Collective. FailedPrecondition on all ranks, naming what differs first, between which ranks and
// how, unless all pass the same names and values.
absl::Status AgreeOnValues(absl::Span<const NamedValue> mine, Communicator& world, Stream& stream);

}  // namespace thinwire
