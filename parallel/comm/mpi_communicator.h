// Ranks as processes of an MPI job, on one host or many. Host memory only.
#pragma once

#include <cstdint>
#include <memory>

#include "parallel/comm/communicator.h"

namespace thinwire {

class MpiJob;

// Longer messages travel in pieces: MPI counts in int, and each piece that arrives restarts the
// timeout.
inline constexpr int64_t kMpiPieceBytes = int64_t{256} << 20;

// The communicator of all ranks of `job`, which it borrows. To be made once per job, on every rank,
// with the same piece_bytes; others are split from it. Waits for nobody.
//
// MPI cannot take back a message. After a failure it may therefore read the memory of tensors that
// the failed call was sending, if a receiver asks for them later; the ranks of a failed
// communicator get a notice first, so that they do not ask.
std::unique_ptr<Communicator> CreateMpiCommunicator(MpiJob& job,
                                                    int64_t piece_bytes = kMpiPieceBytes);

}  // namespace thinwire
