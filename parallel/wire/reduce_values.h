// Collectives on a few numbers of the host, whatever device a communicator is for. Private to this
// folder.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/copy.h"
#include "kernels/core/dtype.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// values: fp32 | int64, becomes the reduction over ranks. Waits for it.
template <typename T>
absl::Status ReduceValues(Communicator& comm, absl::Span<T> values, ReduceOp op, Stream& stream) {
  const auto n = static_cast<int64_t>(values.size());
  const TensorView here(values.data(), DTypeOf<T>(), {n});
  if (stream.device().kind == DeviceKind::kCpu) return comm.AllReduce(here, op, stream);
  TW_ASSIGN_OR_RETURN(Tensor there, Tensor::Allocate(DTypeOf<T>(), {n}, stream.device()));
  TW_RETURN_IF_ERROR(Copy(here, there.mutable_view(), stream));
  TW_RETURN_IF_ERROR(comm.AllReduce(there.mutable_view(), op, stream));
  TW_RETURN_IF_ERROR(comm.Wait(stream));
  TW_RETURN_IF_ERROR(Copy(there.view(), here, stream));
  return comm.Wait(stream);
}

}  // namespace thinwire
