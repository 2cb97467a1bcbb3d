// Ranks agree on whether all of them succeeded.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// Collective. Every rank passes its own status; all return OK when all are, and otherwise the
// status of the lowest rank that failed (messages up to 1000 bytes), prefixed by "rank N: " where
// only some ranks fail. So a file that one rank cannot read ends the job on all of them with the
// same words.
absl::Status AgreeOnStatus(const absl::Status& mine, Communicator& world, Stream& stream);

}  // namespace thinwire
