// All collectives for host memory, written once over a HostTransport.
#pragma once

#include <memory>

#include "kernels/core/dtype.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/host_transport.h"

namespace thinwire {

// AllReduce of at most this many bytes takes one step, in which every rank sends all of them to
// every other: half the latency for more bytes. Two ranks always take one step, as the bytes are
// equal.
inline constexpr int64_t kOneStepAllReduceBytes = int64_t{16} << 10;

bool IsOneStepAllReduce(DType dtype, int64_t n, int size);

// Bytes that HostCommunicator sends on rank `rank` of `size` to all-reduce n elements: (p-1) n
// elements in one step; n + (p-2) |chunk| in two, where chunk r of n is [n r / p, n (r+1) / p).
int64_t HostAllReduceBytesSent(DType dtype, int64_t n, int rank, int size);

// AllReduce with more than one step: rank r receives everybody's chunk r, adds the p chunks in rank
// order and sends the result to everybody. AllGather, ReduceScatter, Broadcast and Barrier are one
// step each, in which ranks talk directly to all others. Peers' parts are received into the
// stream's scratch memory.
class HostCommunicator final : public Communicator {
 public:
  explicit HostCommunicator(std::unique_ptr<HostTransport> transport);
  ~HostCommunicator() override;

  int rank() const override { return transport_->rank(); }
  int size() const override { return transport_->size(); }
  bool Supports(Device device) const override { return device.kind == DeviceKind::kCpu; }
  absl::Duration timeout() const override { return timeout_; }
  void set_timeout(absl::Duration timeout) override;

  absl::Status AllReduce(TensorView inout, ReduceOp op, Stream& stream) override;
  absl::Status AllGather(ConstTensorView in, TensorView out, Stream& stream) override;
  absl::Status ReduceScatter(ConstTensorView in, TensorView out, ReduceOp op,
                             Stream& stream) override;
  absl::Status Broadcast(TensorView inout, int root, Stream& stream) override;
  absl::Status Exchange(absl::Span<const ConstTensorView> out, absl::Span<const TensorView> in,
                        Stream& stream) override;
  absl::Status Send(ConstTensorView in, int peer, Stream& stream) override;
  absl::Status Recv(TensorView out, int peer, Stream& stream) override;
  absl::Status Wait(Stream& stream) override;
  absl::Status status() override { return transport_->PollFailure(); }
  absl::Status Barrier(Stream& stream) override;
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override;
  void Abort(const absl::Status& why) override { transport_->Abort(why); }
  int64_t bytes_sent() const override { return bytes_sent_; }

 private:
  // InvalidArgument unless `view` is contiguous host memory; else the transport's failure, if any.
  absl::Status Check(const ConstTensorView& view) const;
  absl::Status CheckPeer(int peer) const;

  // The transport's Exchange in the collective channel, counting bytes.
  absl::Status ExchangeMessages(absl::Span<const OutgoingMessage> outgoing,
                                absl::Span<const IncomingMessage> incoming);

  absl::Status AllReduceInOneStep(TensorView inout, ReduceOp op, Stream& stream);
  absl::Status AllReduceInTwoSteps(TensorView inout, ReduceOp op, Stream& stream);

  // Sends rank r's chunk of `in` to r, receives everybody's chunk of this rank, and reduces those
  // into `out`. offsets[r] is the first element of chunk r; offsets[p] the end.
  absl::Status ScatterAndReduce(ConstTensorView in, absl::Span<const int64_t> offsets, ReduceOp op,
                                void* out, Stream& stream);

  const std::unique_ptr<HostTransport> transport_;
  absl::Duration timeout_ = absl::Seconds(120);
  int64_t bytes_sent_ = 0;
};

}  // namespace thinwire
