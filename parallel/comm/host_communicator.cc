#include "parallel/comm/host_communicator.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/rank_order_reduce.h"

namespace thinwire {
namespace {

const std::byte* At(const void* data, int64_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}

std::byte* At(void* data, int64_t offset) { return static_cast<std::byte*>(data) + offset; }

// Parts in scratch begin at cache lines.
int64_t Padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t ChunkBegin(int64_t n, int chunk, int num_chunks) { return n * chunk / num_chunks; }

}  // namespace

bool IsOneStepAllReduce(DType dtype, int64_t n, int size) {
  return size == 2 || DTypeBytes(dtype, n) <= kOneStepAllReduceBytes;
}

int64_t HostAllReduceBytesSent(DType dtype, int64_t n, int rank, int size) {
  if (size == 1) return 0;
  if (IsOneStepAllReduce(dtype, n, size)) return (size - 1) * DTypeBytes(dtype, n);
  const int64_t chunk = ChunkBegin(n, rank + 1, size) - ChunkBegin(n, rank, size);
  return DTypeBytes(dtype, n + (size - 2) * chunk);
}

HostCommunicator::HostCommunicator(std::unique_ptr<HostTransport> transport)
    : transport_(std::move(transport)) {
  transport_->set_timeout(timeout_);
}

HostCommunicator::~HostCommunicator() = default;

void HostCommunicator::set_timeout(absl::Duration timeout) {
  timeout_ = timeout;
  transport_->set_timeout(timeout);
}

absl::Status HostCommunicator::Check(const ConstTensorView& view) const {
  if (!Supports(view.device())) {
    return absl::InvalidArgumentError(absl::StrCat("this communicator takes host memory, not ",
                                                   view.DebugString(), " on ",
                                                   DeviceName(view.device())));
  }
  if (!view.contiguous()) {
    return absl::InvalidArgumentError(absl::StrCat("collectives take contiguous tensors; ",
                                                   view.DebugString(), " has rows ",
                                                   view.row_stride(), " elements apart"));
  }
  return transport_->failure();
}

absl::Status HostCommunicator::CheckPeer(int peer) const {
  if (peer >= 0 && peer < size() && peer != rank()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("peer ", peer, " is not another rank of [0, ", size(), ")"));
}

absl::Status HostCommunicator::ExchangeMessages(absl::Span<const OutgoingMessage> outgoing,
                                                absl::Span<const IncomingMessage> incoming) {
  for (const OutgoingMessage& message : outgoing) bytes_sent_ += message.bytes;
  return transport_->Exchange(Channel::kCollective, outgoing, incoming);
}

absl::Status HostCommunicator::AllReduce(TensorView inout, ReduceOp op, Stream& stream) {
  TW_RETURN_IF_ERROR(Check(inout));
  TW_RETURN_IF_ERROR(CheckReducible(inout.dtype()));
  const int64_t n = inout.num_elements();
  if (size() == 1 || n == 0) return absl::OkStatus();
  return IsOneStepAllReduce(inout.dtype(), n, size()) ? AllReduceInOneStep(inout, op, stream)
                                                      : AllReduceInTwoSteps(inout, op, stream);
}

absl::Status HostCommunicator::AllReduceInOneStep(TensorView inout, ReduceOp op, Stream& stream) {
  const int p = size();
  const int64_t bytes = inout.size_bytes();
  TW_ASSIGN_OR_RETURN(std::byte * scratch, stream.Scratch((p - 1) * Padded(bytes)));
  std::vector<OutgoingMessage> outgoing;
  std::vector<IncomingMessage> incoming;
  std::vector<const void*> parts;
  for (int r = 0; r < p; ++r) {
    if (r == rank()) {
      parts.push_back(inout.raw());
      continue;
    }
    outgoing.push_back({r, inout.raw(), bytes});
    incoming.push_back({r, scratch, bytes});
    parts.push_back(scratch);
    scratch += Padded(bytes);
  }
  TW_RETURN_IF_ERROR(ExchangeMessages(outgoing, incoming));
  ReduceInRankOrder(inout.dtype(), op, parts, inout.num_elements(), inout.mutable_raw(),
                    stream.pool());
  return absl::OkStatus();
}

absl::Status HostCommunicator::AllReduceInTwoSteps(TensorView inout, ReduceOp op, Stream& stream) {
  const int p = size();
  const int64_t n = inout.num_elements();
  const int64_t element = DTypeBytes(inout.dtype(), 1);
  std::vector<int64_t> offsets;
  for (int r = 0; r <= p; ++r) offsets.push_back(ChunkBegin(n, r, p));
  std::byte* own = At(inout.mutable_raw(), offsets[rank()] * element);
  TW_RETURN_IF_ERROR(ScatterAndReduce(inout, offsets, op, own, stream));

  std::vector<OutgoingMessage> outgoing;
  std::vector<IncomingMessage> incoming;
  for (int r = 0; r < p; ++r) {
    if (r == rank()) continue;
    outgoing.push_back({r, own, (offsets[rank() + 1] - offsets[rank()]) * element});
    incoming.push_back({r, At(inout.mutable_raw(), offsets[r] * element),
                        (offsets[r + 1] - offsets[r]) * element});
  }
  return ExchangeMessages(outgoing, incoming);
}

absl::Status HostCommunicator::ScatterAndReduce(ConstTensorView in,
                                                absl::Span<const int64_t> offsets, ReduceOp op,
                                                void* out, Stream& stream) {
  const int p = size();
  const int64_t element = DTypeBytes(in.dtype(), 1);
  const int64_t count = offsets[rank() + 1] - offsets[rank()];
  TW_ASSIGN_OR_RETURN(std::byte * scratch, stream.Scratch((p - 1) * Padded(count * element)));
  std::vector<OutgoingMessage> outgoing;
  std::vector<IncomingMessage> incoming;
  std::vector<const void*> parts;
  for (int r = 0; r < p; ++r) {
    const std::byte* chunk = At(in.raw(), offsets[r] * element);
    if (r == rank()) {
      parts.push_back(chunk);
      continue;
    }
    outgoing.push_back({r, chunk, (offsets[r + 1] - offsets[r]) * element});
    incoming.push_back({r, scratch, count * element});
    parts.push_back(scratch);
    scratch += Padded(count * element);
  }
  TW_RETURN_IF_ERROR(ExchangeMessages(outgoing, incoming));
  ReduceInRankOrder(in.dtype(), op, parts, count, out, stream.pool());
  return absl::OkStatus();
}

absl::Status HostCommunicator::AllGather(ConstTensorView in, TensorView out, Stream&) {
  TW_RETURN_IF_ERROR(Check(in));
  TW_RETURN_IF_ERROR(Check(out));
  const int64_t bytes = in.size_bytes();
  if (in.dtype() != out.dtype() || out.size_bytes() != size() * bytes) {
    return absl::InvalidArgumentError(absl::StrCat("all-gather of ", in.DebugString(), " among ",
                                                   size(), " ranks does not fill ",
                                                   out.DebugString()));
  }
  if (bytes == 0) return absl::OkStatus();
  std::byte* own = At(out.mutable_raw(), rank() * bytes);
  if (own != in.raw()) std::memcpy(own, in.raw(), bytes);
  std::vector<OutgoingMessage> outgoing;
  std::vector<IncomingMessage> incoming;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    outgoing.push_back({r, own, bytes});
    incoming.push_back({r, At(out.mutable_raw(), r * bytes), bytes});
  }
  return ExchangeMessages(outgoing, incoming);
}

absl::Status HostCommunicator::ReduceScatter(ConstTensorView in, TensorView out, ReduceOp op,
                                             Stream& stream) {
  TW_RETURN_IF_ERROR(Check(in));
  TW_RETURN_IF_ERROR(Check(out));
  TW_RETURN_IF_ERROR(CheckReducible(in.dtype()));
  const int64_t n = out.num_elements();
  if (in.dtype() != out.dtype() || in.num_elements() != size() * n) {
    return absl::InvalidArgumentError(absl::StrCat("reduce-scatter of ", in.DebugString(),
                                                   " among ", size(), " ranks does not fill ",
                                                   out.DebugString()));
  }
  if (n == 0) return absl::OkStatus();
  std::vector<int64_t> offsets;
  for (int r = 0; r <= size(); ++r) offsets.push_back(r * n);
  return ScatterAndReduce(in, offsets, op, out.mutable_raw(), stream);
}

absl::Status HostCommunicator::Broadcast(TensorView inout, int root, Stream&) {
  TW_RETURN_IF_ERROR(Check(inout));
  if (root < 0 || root >= size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("broadcast root ", root, " is not a rank of [0, ", size(), ")"));
  }
  const int64_t bytes = inout.size_bytes();
  if (bytes == 0) return absl::OkStatus();
  if (rank() != root) {
    const IncomingMessage incoming = {root, inout.mutable_raw(), bytes};
    return ExchangeMessages({}, {&incoming, 1});
  }
  std::vector<OutgoingMessage> outgoing;
  for (int r = 0; r < size(); ++r) {
    if (r != root) outgoing.push_back({r, inout.raw(), bytes});
  }
  return ExchangeMessages(outgoing, {});
}

absl::Status HostCommunicator::Exchange(absl::Span<const ConstTensorView> out,
                                        absl::Span<const TensorView> in, Stream&) {
  TW_RETURN_IF_ERROR(transport_->failure());
  if (static_cast<int>(out.size()) != size() || static_cast<int>(in.size()) != size()) {
    return absl::InvalidArgumentError(absl::StrCat("an exchange among ", size(), " ranks with ",
                                                   out.size(), " views to send and ", in.size(),
                                                   " to receive"));
  }
  std::vector<OutgoingMessage> outgoing;
  std::vector<IncomingMessage> incoming;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    if (out[r].num_elements() > 0) {
      TW_RETURN_IF_ERROR(Check(out[r]));
      outgoing.push_back({r, out[r].raw(), out[r].size_bytes()});
    }
    if (in[r].num_elements() > 0) {
      TW_RETURN_IF_ERROR(Check(in[r]));
      incoming.push_back({r, in[r].mutable_raw(), in[r].size_bytes()});
    }
  }
  return ExchangeMessages(outgoing, incoming);
}

absl::Status HostCommunicator::Send(ConstTensorView in, int peer, Stream&) {
  TW_RETURN_IF_ERROR(Check(in));
  TW_RETURN_IF_ERROR(CheckPeer(peer));
  bytes_sent_ += in.size_bytes();
  return transport_->SendBuffered(Channel::kPointToPoint, {peer, in.raw(), in.size_bytes()});
}

absl::Status HostCommunicator::Recv(TensorView out, int peer, Stream&) {
  TW_RETURN_IF_ERROR(Check(out));
  TW_RETURN_IF_ERROR(CheckPeer(peer));
  const IncomingMessage incoming = {peer, out.mutable_raw(), out.size_bytes()};
  return transport_->Exchange(Channel::kPointToPoint, {}, {&incoming, 1});
}

absl::Status HostCommunicator::Wait(Stream& stream) {
  TW_RETURN_IF_ERROR(transport_->failure());
  return stream.Synchronize();
}

absl::Status HostCommunicator::Barrier(Stream& stream) {
  TW_RETURN_IF_ERROR(transport_->failure());
  TW_RETURN_IF_ERROR(stream.Synchronize());
  std::vector<OutgoingMessage> outgoing;
  std::vector<IncomingMessage> incoming;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    outgoing.push_back({r, nullptr, 0});
    incoming.push_back({r, nullptr, 0});
  }
  return ExchangeMessages(outgoing, incoming);
}

absl::StatusOr<std::unique_ptr<Communicator>> HostCommunicator::Split(int color, int key) {
  TW_RETURN_IF_ERROR(transport_->failure());
  struct Request {
    int64_t color;
    int64_t key;
    int64_t id;
  };
  std::vector<Request> requests(size());
  requests[rank()] = {color, key, transport_->NewSplitId()};
  std::vector<OutgoingMessage> outgoing;
  std::vector<IncomingMessage> incoming;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    outgoing.push_back({r, &requests[rank()], sizeof(Request)});
    incoming.push_back({r, &requests[r], sizeof(Request)});
  }
  TW_RETURN_IF_ERROR(ExchangeMessages(outgoing, incoming));
  if (color < 0) return std::unique_ptr<Communicator>();

  std::vector<int> ranks;
  for (int r = 0; r < size(); ++r) {
    if (requests[r].color == color) ranks.push_back(r);
  }
  std::stable_sort(ranks.begin(), ranks.end(),
                   [&](int a, int b) { return requests[a].key < requests[b].key; });
  TW_ASSIGN_OR_RETURN(std::unique_ptr<HostTransport> transport,
                      transport_->Split(requests[0].id, color, ranks));
  auto child = std::make_unique<HostCommunicator>(std::move(transport));
  child->set_timeout(timeout_);
  return std::unique_ptr<Communicator>(std::move(child));
}

}  // namespace thinwire
