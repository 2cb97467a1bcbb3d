// The NCCL backend's class. Private to nccl_*.cc, as it shows nccl.h.
#pragma once

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/comm/peer_memory.h"

namespace thinwire {

// See nccl_communicator.h.
class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> control, Device device, const NcclOptions& options)
      : control_(std::move(control)),
        device_(device),
        options_(options),
        host_(Stream::Cpu(&pool_)) {}
  ~NcclCommunicator() override;

  // Joins the others. The communicator is of no use otherwise.
  absl::Status Connect();

  int rank() const override { return control_->rank(); }
  int size() const override { return control_->size(); }
  bool Supports(Device device) const override { return device == device_; }
  absl::Duration timeout() const override { return control_->timeout(); }
  void set_timeout(absl::Duration timeout) override { control_->set_timeout(timeout); }

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
  absl::Status Barrier(Stream& stream) override;
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override;
  void Abort(const absl::Status& why) override { control_->Abort(why); }
  absl::Status status() override;
  absl::StatusOr<PeerMemory*> Peers() override;
  int64_t bytes_sent() const override {
    return bytes_sent_ + (peers_ != nullptr ? peers_->bytes_sent() : 0);
  }

 private:
  struct Message {
    int peer;
    const void* out;  // null: receive
    void* in;
    int64_t bytes;
  };

  // InvalidArgument unless `view` is contiguous memory of this GPU, and the stream is of this GPU.
  absl::Status Check(const ConstTensorView& view, const Stream& stream) const;
  absl::Status CheckPeer(int peer) const;

  // Makes a blocking communicator and its first messages in a thread, which is left alone with them
  // after the timeout.
  absl::Status ConnectInThread(const ncclUniqueId& id);

  // The status of an NCCL call, once it has been taken in hand: without blocking, calls go on in
  // the background. A failure ends the communicator on all ranks.
  absl::Status Finish(ncclResult_t result, absl::string_view call);

  // Polls until `done` returns true. DeadlineExceeded after the timeout, and the failure of another
  // rank, end the communicator.
  template <typename Done>
  absl::Status PollUntil(absl::string_view what, const Done& done);

  // Keeps the first cause, tells the others, and ends what is enqueued. Returns the first cause.
  absl::Status Fail(const absl::Status& why);

  // Sends and receives all messages together, counting bytes.
  absl::Status Transfer(absl::Span<const Message> messages, Stream& stream);

  // Sends rank r's chunk of `in` to r, and reduces everybody's chunk of this rank into `out`.
  // offsets[r] is the first element of chunk r; offsets[p] the end.
  absl::Status ScatterAndReduce(ConstTensorView in, absl::Span<const int64_t> offsets, ReduceOp op,
                                void* out, Stream& stream);
  absl::Status AllReduceInOneStep(TensorView inout, ReduceOp op, Stream& stream);

  const std::unique_ptr<Communicator> control_;
  const Device device_;
  const NcclOptions options_;
  ThreadPool pool_{1};
  Stream host_;
  ncclComm_t comm_ = nullptr;
  absl::Status failure_;
  bool asked_for_peers_ = false;
  absl::Status no_peers_;  // why
  std::unique_ptr<PeerMemory> peers_;
  int64_t bytes_sent_ = 0;
};

}  // namespace thinwire
