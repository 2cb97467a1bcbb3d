// A sum over ranks through peer memory and the norm that follows it, in one kernel. Only in builds
// with CUDA. Private to this folder.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/norm/norm.h"
#include "parallel/comm/peer_memory.h"

namespace thinwire {

// Whether SumAndNormThroughPeers takes such a norm and had better: few rows, of whole vectors of 16
// bytes, in the memory of GPUs, without an order. The same on all ranks, since it depends on no
// address.
bool PeersSumAndNorm(const PeerMemory& peers, const NormArgs& norm);

// As SumThroughPeersCuda of norm.delta, which is left as it is, and Norm with the sum for delta;
// with the same bits. `norm`: as PeersSumAndNorm wants it, with a delta, all from multiples of 16
// bytes on (InvalidArgument otherwise: a rank could not choose another way alone). Counts (p-1)
// times the bytes of delta as sent.
absl::Status SumAndNormThroughPeers(PeerMemory& peers, const NormArgs& norm, Stream& stream);

}  // namespace thinwire
