// The NCCL backend's messages: whole, or large ones in parts by several of NCCL's communicators.
#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_status.h"
#include "parallel/comm/nccl_internal.h"

namespace thinwire {

absl::Status NcclCommunicator::SideBySide(
    size_t count, Stream& stream, absl::FunctionRef<absl::Status(size_t i, Stream& s)> enqueue) {
  if (count > 1) {
    TW_RETURN_IF_ERROR(forked_->Record(stream));
    for (size_t i = 1; i < count; ++i)
      TW_RETURN_IF_ERROR(forked_->OrderBefore(sides_[i - 1].stream));
  }
  absl::Status first;
  for (size_t i = 0; i < count && first.ok(); ++i) {
    first = enqueue(i, i == 0 ? stream : sides_[i - 1].stream);
  }
  // Joined whatever happened, since a capture must not end with open branches.
  for (size_t i = 1; i < count; ++i) {
    first.Update(sides_[i - 1].done.Record(sides_[i - 1].stream));
    first.Update(sides_[i - 1].done.OrderBefore(stream));
  }
  return first;
}

absl::Status NcclCommunicator::InStripes(int64_t bytes, Stream& stream, EnqueueStripe enqueue) {
  const std::vector<Stripe> parts =
      CutIntoStripes(bytes, num_stripes_, options_.least_stripe_bytes);
  return SideBySide(parts.size(), stream,
                    [&](size_t i, Stream& s) { return enqueue(i, parts[i], s); });
}

absl::Status NcclCommunicator::Transfer(absl::Span<const Message> messages, Stream& stream) {
  // Sender and receiver agree in a message's bytes, and so in its parts.
  size_t count = 1;
  std::vector<std::vector<Stripe>> parts;
  for (const Message& message : messages) {
    parts.push_back(message.bytes == 0
                        ? std::vector<Stripe>()
                        : CutIntoStripes(message.bytes, num_stripes_, options_.least_stripe_bytes));
    count = std::max(count, parts.back().size());
    if (message.out != nullptr) bytes_sent_ += message.bytes;
  }
  return SideBySide(count, stream, [&](size_t i, Stream& s) {
    TW_RETURN_IF_ERROR(Finish(i, ncclGroupStart(), "ncclGroupStart"));
    ncclResult_t first = ncclSuccess;
    for (size_t m = 0; m < messages.size(); ++m) {
      if (parts[m].size() <= i) continue;
      const Message& message = messages[m];
      const auto bytes = static_cast<size_t>(parts[m][i].size());
      const int64_t begin = parts[m][i].begin;
      const ncclResult_t result =
          message.out != nullptr
              ? ncclSend(static_cast<const std::byte*>(message.out) + begin, bytes, ncclUint8,
                         message.peer, comms_[i], CudaStream(s))
              : ncclRecv(static_cast<std::byte*>(message.in) + begin, bytes, ncclUint8,
                         message.peer, comms_[i], CudaStream(s));
      if (first == ncclSuccess && result != ncclInProgress) first = result;
    }
    const ncclResult_t ended = ncclGroupEnd();
    return Finish(i, first != ncclSuccess ? first : ended, "ncclSend and ncclRecv");
  });
}

absl::Status NcclCommunicator::GatherStripe(size_t i, const Stripe& part, const std::byte* in,
                                            std::byte* out, int64_t bytes, Stream& stream) {
  std::byte* const staging = staging_.data() + static_cast<int64_t>(i) * kStagingBytes;
  const int64_t round = kStagingBytes / size() / kStripeAlignment * kStripeAlignment;
  for (int64_t begin = part.begin; begin < part.end; begin += round) {
    const auto count = static_cast<size_t>(std::min(round, part.end - begin));
    TW_RETURN_IF_ERROR(Finish(
        i, ncclAllGather(in + begin, staging, count, ncclUint8, comms_[i], CudaStream(stream)),
        "ncclAllGather"));
    TW_RETURN_IF_CUDA_ERROR(cudaMemcpy2DAsync(out + begin, static_cast<size_t>(bytes), staging,
                                              count, count, static_cast<size_t>(size()),
                                              cudaMemcpyDeviceToDevice, CudaStream(stream)),
                            device_);
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::AllGather(ConstTensorView in, TensorView out, Stream& stream) {
  TW_RETURN_IF_ERROR(Check(in, stream));
  TW_RETURN_IF_ERROR(Check(out, stream));
  const int64_t bytes = in.size_bytes();
  if (in.dtype() != out.dtype() || out.size_bytes() != size() * bytes) {
    return absl::InvalidArgumentError(absl::StrCat("all-gather of ", in.DebugString(), " among ",
                                                   size(), " ranks does not fill ",
                                                   out.DebugString()));
  }
  TW_RETURN_IF_ERROR(status());
  if (bytes == 0) return absl::OkStatus();
  bytes_sent_ += (size() - 1) * bytes;
  const auto* const from = static_cast<const std::byte*>(in.raw());
  auto* const to = static_cast<std::byte*>(out.mutable_raw());
  return InStripes(bytes, stream, [&](size_t i, const Stripe& part, Stream& s) {
    if (part.size() < bytes) return GatherStripe(i, part, from, to, bytes, s);
    return Finish(
        i, ncclAllGather(from, to, static_cast<size_t>(bytes), ncclUint8, comms_[i], CudaStream(s)),
        "ncclAllGather");
  });
}

absl::Status NcclCommunicator::Broadcast(TensorView inout, int root, Stream& stream) {
  TW_RETURN_IF_ERROR(Check(inout, stream));
  if (root < 0 || root >= size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("broadcast root ", root, " is not a rank of [0, ", size(), ")"));
  }
  TW_RETURN_IF_ERROR(status());
  const int64_t bytes = inout.size_bytes();
  if (bytes == 0) return absl::OkStatus();
  if (rank() == root) bytes_sent_ += (size() - 1) * bytes;
  return InStripes(bytes, stream, [&](size_t i, const Stripe& part, Stream& s) {
    std::byte* const data = static_cast<std::byte*>(inout.mutable_raw()) + part.begin;
    return Finish(i,
                  ncclBroadcast(data, data, static_cast<size_t>(part.size()), ncclUint8, root,
                                comms_[i], CudaStream(s)),
                  "ncclBroadcast");
  });
}

}  // namespace thinwire
