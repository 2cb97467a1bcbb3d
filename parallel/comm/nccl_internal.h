// The NCCL backend's class. Private to nccl_*.cc, as it shows nccl.h.
#pragma once

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/buffer.h"
#include "kernels/core/event.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "parallel/comm/nccl_communicator.h"
#include "parallel/comm/peer_memory.h"
#include "parallel/comm/stripes.h"

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
  // Gathered parts lie side by side here first: NCCL puts ranks' parts behind each other.
  static constexpr int64_t kStagingBytes = int64_t{16} << 20;
  static_assert(kMostNcclStripes * kStagingBytes <= PeerMemory::kDeviceBytes,
                "plans count peer memory, which ranks over a network do not have");

  struct Message {
    int peer;
    const void* out;  // null: receive
    void* in;
    int64_t bytes;
  };

  // InvalidArgument unless `view` is contiguous memory of this GPU, and the stream is of this GPU.
  absl::Status Check(const ConstTensorView& view, const Stream& stream) const;
  absl::Status CheckPeer(int peer) const;

  using Ids = ncclUniqueId[kMostNcclStripes];

  // What orders the work of one more of NCCL's communicators against the caller's.
  struct Side {
    Stream stream;
    Event done;
  };

  // Makes `count` blocking communicators and their first messages in a thread, which is left alone
  // with them after the timeout.
  absl::Status ConnectInThread(const Ids& ids, int count);
  absl::Status ConnectWithoutBlocking(const Ids& ids, int count);

  // Whether NCCL takes some pair of ranks through a network, sockets of this host included, and no
  // two ranks share a GPU, on which their kernels would take turns. Collective.
  absl::StatusOr<bool> CrossesNetwork();
  // Makes what stripes need, beside the communicators.
  absl::Status PrepareStripes();
  // Keeps all communicators where they gather at least a tenth faster than the first alone does.
  absl::Status KeepStripesIfFaster();
  // The slowest rank's median time of gathering some bytes.
  absl::StatusOr<double> TimeGather(Stream& stream);
  // Ends and forgets communicators [first, ...). Collective.
  absl::Status Leave(size_t first);

  // Cuts `bytes` into parts and calls enqueue(i, part, stream) for part i, which goes to
  // comms_[i] on `stream`, forked from the caller's stream and joined to it.
  using EnqueueStripe = absl::FunctionRef<absl::Status(size_t i, const Stripe& part, Stream& s)>;
  absl::Status InStripes(int64_t bytes, Stream& stream, EnqueueStripe enqueue);
  // The same for any parts; part i of `count` parts.
  absl::Status SideBySide(size_t count, Stream& stream,
                          absl::FunctionRef<absl::Status(size_t i, Stream& s)> enqueue);
  // Gathers `part` of every rank's `bytes` bytes in staging memory and spreads it over `out`.
  absl::Status GatherStripe(size_t i, const Stripe& part, const std::byte* in, std::byte* out,
                            int64_t bytes, Stream& stream);

  // The status of a call of NCCL's on comms_[i], once it has been taken in hand: without blocking,
  // calls go on in the background. A failure ends all communicators on all ranks.
  absl::Status Finish(size_t i, ncclResult_t result, absl::string_view call);

  // Polls until `done` returns true. DeadlineExceeded after the timeout, and the failure of another
  // rank, end the communicator.
  absl::Status PollUntil(absl::string_view what, absl::FunctionRef<absl::StatusOr<bool>()> done);

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
  std::vector<ncclComm_t> comms_;  // the first has all calls, the others parts of large ones
  int num_stripes_ = 1;            // of comms_, that take part
  std::vector<Side> sides_;        // of comms_[1], ...
  std::optional<Event> forked_;
  Buffer staging_;  // kStagingBytes for each of comms_
  absl::Status failure_;
  bool asked_for_peers_ = false;
  absl::Status no_peers_;  // why
  std::unique_ptr<PeerMemory> peers_;
  int64_t bytes_sent_ = 0;
};

}  // namespace thinwire
