// Communicators for tensors on GPUs, through NCCL.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/core/device.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

struct NcclOptions {
  // Send tells the receiver's host how long its message is, so that Recv, which waits for that, can
  // refuse another size. Without, both only enqueue, and sizes that disagree end in a timeout: for
  // callers that know sizes to agree and want the host to run ahead.
  bool announces_sizes = true;
  // Kernels write to other ranks' GPUs where the host lets them: Peers() is what makes it so.
  bool uses_peer_memory = true;
  // Whether calls enqueue in the caller's thread: in some microseconds, where a thread of NCCL's
  // takes a hundred, but NCCL itself then waits without a bound should it have to (for room in the
  // GPU's queue). For callers that watch their calls; making the communicator, and with it the
  // first message to each rank, is bounded either way.
  bool blocking = false;
  // How many of NCCL's communicators carry parts of large messages at once (stripes.h), 1 to
  // kMostNcclStripes: each has threads and sockets of its own. 0: one where the ranks' GPUs or
  // their host's memory connect them; over a network three, if a trial finds them faster.
  int stripes = 0;
  // Of a part, at least. The same on all ranks, like `stripes`.
  int64_t least_stripe_bytes = int64_t{64} << 10;
};

inline constexpr int kMostNcclStripes = 4;

// A communicator of the ranks of `control`, each with a GPU of its own, `device` on this rank.
// Collective; waits for the others as long as control's timeout. `control` is one for host memory
// that nobody else uses: it agrees on NCCL's id, carries the sizes of messages, the barriers and
// the failures, and ends with the communicator.
//
// Sums keep the promise of Communicator. Of two ranks they are NCCL's, since two terms have one
// order and one rounding (fp16 and bf16, too: rounding their exact sum to fp32 first changes
// nothing). More ranks send their parts to an owner, who adds in rank order, and gather the
// results: the bytes of a ring in two steps. Maxima go that way always, for the sake of NaNs. Once
// there is peer memory, sums of up to MostPeerSumBytes go through it, with the same bits.
//
// Unimplemented in a build without NCCL.
absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(
    std::unique_ptr<Communicator> control, Device device, const NcclOptions& options = {});

// "2.28.3", or why there is none.
std::string NcclVersion();

}  // namespace thinwire
