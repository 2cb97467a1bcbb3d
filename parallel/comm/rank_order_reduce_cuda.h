// Sums and maxima over ranks on a GPU, in builds with CUDA: as rank_order_reduce.h.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/dtype.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// ReduceInRankOrder, enqueued: the same bits. Parts and out are on the stream's GPU; at most 64
// parts, else InvalidArgument.
absl::Status ReduceInRankOrderCuda(DType dtype, ReduceOp op, absl::Span<const void* const> parts,
                                   int64_t n, void* out, Stream& stream);

}  // namespace thinwire
