// Sums and maxima over ranks, in rank order, in fp32: the arithmetic of AllReduce and
// ReduceScatter.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/dtype.h"
#include "kernels/core/thread_pool.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// True for the dtypes that can be reduced: fp32, fp16, bf16, int32, int64.
bool CanReduce(DType dtype);

// InvalidArgument, with those dtypes, for others.
absl::Status CheckReducible(DType dtype);

// out[i] = parts[0][i] op parts[1][i] op ..., evaluated from the left; i in [0, n). Floats are
// added in fp32 and rounded once to `dtype`; integers wrap; a maximum with a NaN is NaN. There is
// at least one part. `out` may be one of the parts. The result of an element depends on that
// element only, never on n, on its position or on the threads.
void ReduceInRankOrder(DType dtype, ReduceOp op, absl::Span<const void* const> parts, int64_t n,
                       void* out, ThreadPool& pool);

}  // namespace thinwire
