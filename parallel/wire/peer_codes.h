// Encoded sums and rows through peer memory: codec, transfer and decoding in one kernel. Only in
// builds with CUDA. Private to this folder.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "parallel/comm/peer_memory.h"
#include "parallel/wire/row_codec.h"

namespace thinwire {

// What becomes of rows on all p ranks, rank r of which owns rows [offsets[r], offsets[r + 1]).
enum class PeerExchange {
  kSumAll,       // all rows are the sum of all ranks' decoded rows, in rank order
  kSumToOwners,  // an owner's rows: plus the sum of the others' decoded rows, in rank order
  kShare,        // all rows are what their owners' decode to
};

// Whether ExchangeThroughPeers takes such rows: codes in whole groups of 64 channels or 128, rows
// without gaps, on a GPU. The same on all ranks, since it depends on no address.
bool PeersExchange(const RowCodec& codec, const ConstTensorView& rows);

// rows: [n, width] as PeersExchange wants them, from a multiple of 16 bytes on (InvalidArgument
// otherwise: a rank could not choose another way alone). The bits are those of EncodeRows, an
// exchange of the bytes, and DecodeRows or AddDecodedRows. Counts as sent the rows' bytes, which is
// what is sent but for up to 30 bytes of padding a block of rows and 8 bytes of signal for every
// round of up to 256 groups or, through the host, a third more for marks.
absl::Status ExchangeThroughPeers(PeerMemory& peers, PeerExchange exchange, const RowCodec& codec,
                                  TensorView rows, absl::Span<const int64_t> offsets,
                                  Stream& stream);

// The part of ExchangeThroughPeers that enqueues kernels, through memory of the host: values carry
// their own marks there (a third more bytes), for signals would wait longer than that takes.
void LaunchMarkedExchange(const PeerMemory& peers, PeerExchange exchange, const RowCodec& codec,
                          TensorView rows, absl::Span<const int64_t> offsets, Stream& stream);

}  // namespace thinwire
