// Sums and maxima of the NCCL backend: by NCCL where it keeps the promise of Communicator, else by
// messages and a kernel of ours.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/cuda_status.h"
#include "parallel/comm/host_communicator.h"
#include "parallel/comm/nccl_internal.h"
#include "parallel/comm/peer_sums_cuda.h"
#include "parallel/comm/rank_order_reduce.h"
#include "parallel/comm/rank_order_reduce_cuda.h"

namespace thinwire {
namespace {

const std::byte* At(const void* data, int64_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}

std::byte* At(void* data, int64_t offset) { return static_cast<std::byte*>(data) + offset; }

// Parts in scratch begin at whole 256 bytes.
int64_t Padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

ncclDataType_t NcclType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kF16:
      return ncclFloat16;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kI32:
      return ncclInt32;
    default:
      TW_CHECK(dtype == DType::kI64);
      return ncclInt64;
  }
}

}  // namespace

absl::Status NcclCommunicator::AllReduce(TensorView inout, ReduceOp op, Stream& stream) {
  TW_RETURN_IF_ERROR(Check(inout, stream));
  TW_RETURN_IF_ERROR(CheckReducible(inout.dtype()));
  TW_RETURN_IF_ERROR(status());
  const int p = size();
  const int64_t n = inout.num_elements();
  if (p == 1 || n == 0) return absl::OkStatus();
  if (peers_ != nullptr && op == ReduceOp::kSum && IsFloat(inout.dtype()) &&
      inout.size_bytes() <= MostPeerSumBytes(*peers_)) {
    return SumThroughPeersCuda(*peers_, inout, stream);
  }
  if (p == 2 && op == ReduceOp::kSum) {
    bytes_sent_ += inout.size_bytes();
    const int64_t element = DTypeBytes(inout.dtype(), 1);
    const auto add = [&](size_t i, const Stripe& part, Stream& s) {
      std::byte* const data = At(inout.mutable_raw(), part.begin);
      return Finish(i,
                    ncclAllReduce(data, data, static_cast<size_t>(part.size() / element),
                                  NcclType(inout.dtype()), ncclSum, comms_[i], CudaStream(s)),
                    "ncclAllReduce");
    };
    return InStripes(inout.size_bytes(), stream, add);
  }
  if (IsOneStepAllReduce(inout.dtype(), n, p)) return AllReduceInOneStep(inout, op, stream);
  const int64_t element = DTypeBytes(inout.dtype(), 1);
  std::vector<int64_t> offsets;
  for (int r = 0; r <= p; ++r) offsets.push_back(n * r / p);
  std::byte* const own = At(inout.mutable_raw(), offsets[rank()] * element);
  TW_RETURN_IF_ERROR(ScatterAndReduce(inout, offsets, op, own, stream));
  std::vector<Message> messages;
  for (int r = 0; r < p; ++r) {
    if (r == rank()) continue;
    messages.push_back({r, own, nullptr, (offsets[rank() + 1] - offsets[rank()]) * element});
    messages.push_back({r, nullptr, At(inout.mutable_raw(), offsets[r] * element),
                        (offsets[r + 1] - offsets[r]) * element});
  }
  return Transfer(messages, stream);
}

absl::Status NcclCommunicator::AllReduceInOneStep(TensorView inout, ReduceOp op, Stream& stream) {
  const int64_t bytes = inout.size_bytes();
  TW_ASSIGN_OR_RETURN(std::byte * scratch, stream.Scratch((size() - 1) * Padded(bytes)));
  std::vector<Message> messages;
  std::vector<const void*> parts;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) {
      parts.push_back(inout.raw());
      continue;
    }
    messages.push_back({r, inout.raw(), nullptr, bytes});
    messages.push_back({r, nullptr, scratch, bytes});
    parts.push_back(scratch);
    scratch += Padded(bytes);
  }
  TW_RETURN_IF_ERROR(Transfer(messages, stream));
  return ReduceInRankOrderCuda(inout.dtype(), op, parts, inout.num_elements(), inout.mutable_raw(),
                               stream);
}

absl::Status NcclCommunicator::ScatterAndReduce(ConstTensorView in,
                                                absl::Span<const int64_t> offsets, ReduceOp op,
                                                void* out, Stream& stream) {
  const int64_t element = DTypeBytes(in.dtype(), 1);
  const int64_t count = offsets[rank() + 1] - offsets[rank()];
  TW_ASSIGN_OR_RETURN(std::byte * scratch, stream.Scratch((size() - 1) * Padded(count * element)));
  std::vector<Message> messages;
  std::vector<const void*> parts;
  for (int r = 0; r < size(); ++r) {
    const std::byte* const chunk = At(in.raw(), offsets[r] * element);
    if (r == rank()) {
      parts.push_back(chunk);
      continue;
    }
    messages.push_back({r, chunk, nullptr, (offsets[r + 1] - offsets[r]) * element});
    messages.push_back({r, nullptr, scratch, count * element});
    parts.push_back(scratch);
    scratch += Padded(count * element);
  }
  TW_RETURN_IF_ERROR(Transfer(messages, stream));
  return ReduceInRankOrderCuda(in.dtype(), op, parts, count, out, stream);
}

absl::Status NcclCommunicator::ReduceScatter(ConstTensorView in, TensorView out, ReduceOp op,
                                             Stream& stream) {
  TW_RETURN_IF_ERROR(Check(in, stream));
  TW_RETURN_IF_ERROR(Check(out, stream));
  TW_RETURN_IF_ERROR(CheckReducible(in.dtype()));
  const int64_t n = out.num_elements();
  if (in.dtype() != out.dtype() || in.num_elements() != size() * n) {
    return absl::InvalidArgumentError(absl::StrCat("reduce-scatter of ", in.DebugString(),
                                                   " among ", size(), " ranks does not fill ",
                                                   out.DebugString()));
  }
  TW_RETURN_IF_ERROR(status());
  if (n == 0) return absl::OkStatus();
  if (size() == 2 && op == ReduceOp::kSum) {
    bytes_sent_ += out.size_bytes();
    return Finish(0,
                  ncclReduceScatter(in.raw(), out.mutable_raw(), static_cast<size_t>(n),
                                    NcclType(in.dtype()), ncclSum, comms_[0], CudaStream(stream)),
                  "ncclReduceScatter");
  }
  std::vector<int64_t> offsets;
  for (int r = 0; r <= size(); ++r) offsets.push_back(r * n);
  return ScatterAndReduce(in, offsets, op, out.mutable_raw(), stream);
}

}  // namespace thinwire
