// Sums over ranks through peer memory: one kernel, one step.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "parallel/comm/peer_memory.h"

namespace thinwire {

// The most bytes for which every rank had better send all it has to every other than leave the sum
// to NCCL: measured on H100s for two ranks; for more, whose links carry (p-1) times as much, few.
int64_t MostPeerSumBytes(const PeerMemory& peers);

// inout: fp32 | fp16 | bf16, contiguous, at most MostPeerSumBytes: the sum over ranks, added in
// rank order in fp32 and rounded once. Counts (p-1) times its bytes as sent.
absl::Status SumThroughPeersCuda(PeerMemory& peers, TensorView inout, Stream& stream);

}  // namespace thinwire
