#include "parallel/comm/nccl_communicator.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/buffer.h"
#include "kernels/core/cuda_status.h"
#include "parallel/comm/backoff.h"
#include "parallel/comm/nccl_internal.h"

namespace thinwire {
namespace {

// For the others to end a communicator, too, and for kernels that have been told to end.
constexpr absl::Duration kLeaveTimeout = absl::Seconds(20);
constexpr absl::Duration kDrainTimeout = absl::Seconds(2);

// Whether all work on a stream is done, or its error.
absl::StatusOr<bool> Idle(cudaStream_t stream, Device device) {
  const cudaError_t error = cudaStreamQuery(stream);
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();  // else the next launch would report it
    return false;
  }
  TW_RETURN_IF_ERROR(CudaStatus(error, "cudaStreamQuery", device));
  return true;
}

}  // namespace

absl::Status NcclCommunicator::Fail(const absl::Status& why) {
  if (failure_.ok()) {
    // Another rank may have been first.
    const absl::Status told = control_->status();
    failure_ = told.ok() ? why : told;
    if (told.ok()) control_->Abort(why);
  }
  if (peers_ != nullptr) peers_->Stop();
  if (comm_ != nullptr) ncclCommAbort(std::exchange(comm_, nullptr));
  return failure_;
}

absl::Status NcclCommunicator::status() {
  if (!failure_.ok()) return failure_;
  absl::Status told = control_->status();
  if (told.ok() && peers_ != nullptr) told = peers_->status();
  if (!told.ok()) return Fail(told);
  ncclResult_t state = ncclSuccess;
  if (comm_ == nullptr || ncclCommGetAsyncError(comm_, &state) != ncclSuccess ||
      state == ncclSuccess || state == ncclInProgress) {
    return absl::OkStatus();
  }
  return Fail(absl::UnavailableError(
      absl::StrCat("NCCL on rank ", rank(), ", ", DeviceName(device_), ": ",
                   ncclGetErrorString(state), ": ", ncclGetLastError(comm_))));
}

absl::StatusOr<PeerMemory*> NcclCommunicator::Peers() {
  TW_RETURN_IF_ERROR(status());
  if (!asked_for_peers_) {
    asked_for_peers_ = true;
    if (!options_.uses_peer_memory) {
      no_peers_ = absl::FailedPreconditionError("this communicator was made without peer memory");
    } else {
      const int64_t before = control_->bytes_sent();
      absl::StatusOr<std::unique_ptr<PeerMemory>> made =
          PeerMemory::Create(*control_, host_, device_);
      bytes_sent_ += control_->bytes_sent() - before;
      no_peers_ = made.status();
      TW_RETURN_IF_ERROR(status());
      if (made.ok()) peers_ = *std::move(made);
    }
  }
  TW_RETURN_IF_ERROR(no_peers_);
  return peers_.get();
}

template <typename Done>
absl::Status NcclCommunicator::PollUntil(absl::string_view what, const Done& done) {
  Backoff backoff(timeout());
  for (;;) {
    absl::StatusOr<bool> is_done = done();
    if (!is_done.ok()) return Fail(is_done.status());
    if (*is_done) return absl::OkStatus();
    if (backoff.IsCheckDue()) TW_RETURN_IF_ERROR(status());
    if (!backoff.Wait()) {
      return Fail(absl::DeadlineExceededError(absl::StrCat(
          "rank ", rank(), ": ", what, " made no progress for ", absl::FormatDuration(timeout()))));
    }
  }
}

absl::Status NcclCommunicator::Finish(ncclResult_t result, absl::string_view call) {
  const auto error = [&](ncclResult_t code) {
    const std::string text =
        absl::StrCat(call, " on rank ", rank(), ", ", DeviceName(device_), ": ",
                     ncclGetErrorString(code), ": ", ncclGetLastError(comm_));
    if (code == ncclInvalidArgument || code == ncclInvalidUsage || code == ncclInternalError) {
      return absl::InternalError(text);
    }
    return absl::UnavailableError(text);
  };
  if (result == ncclSuccess) return absl::OkStatus();
  if (result != ncclInProgress) return Fail(error(result));
  return PollUntil(call, [&]() -> absl::StatusOr<bool> {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) return error(asked);
    if (state == ncclInProgress) return false;
    if (state != ncclSuccess) return error(state);
    return true;
  });
}

absl::Status NcclCommunicator::ConnectInThread(const ncclUniqueId& id) {
  // Owned by the thread, which may be left behind, and by this call.
  struct Start {
    std::atomic<bool> done = false;
    std::string call = "ncclCommInitRankConfig";
    ncclResult_t result = ncclSuccess;
    absl::Status status;  // of CUDA
    ncclComm_t comm = nullptr;
  };
  const auto start = std::make_shared<Start>();
  std::thread([start, id, device = device_, ranks = size(), rank = rank()] {
    const auto connect = [&]() -> absl::Status {
      TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device.index), device);
      ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
      config.blocking = 1;
      start->result = ncclCommInitRankConfig(&start->comm, ranks, id, rank, &config);
      if (start->result != ncclSuccess || ranks == 1) return absl::OkStatus();
      start->call = "ncclSend and ncclRecv";
      ThreadPool pool(1);
      TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(device, &pool));
      TW_ASSIGN_OR_RETURN(const Buffer bytes, Buffer::Allocate(2 * ranks, device));
      start->result = ncclGroupStart();
      for (int r = 0; r < ranks && start->result == ncclSuccess; ++r) {
        if (r == rank) continue;
        start->result =
            ncclSend(bytes.data() + r, 1, ncclUint8, r, start->comm, CudaStream(stream));
        if (start->result != ncclSuccess) break;
        start->result =
            ncclRecv(bytes.data() + ranks + r, 1, ncclUint8, r, start->comm, CudaStream(stream));
      }
      const ncclResult_t ended = ncclGroupEnd();
      if (start->result == ncclSuccess) start->result = ended;
      return start->result == ncclSuccess ? stream.Synchronize() : absl::OkStatus();
    };
    start->status = connect();
    start->done.store(true, std::memory_order_release);
  }).detach();
  TW_RETURN_IF_ERROR(PollUntil("making ways to the other ranks", [&]() -> absl::StatusOr<bool> {
    return start->done.load(std::memory_order_acquire);
  }));
  comm_ = start->comm;
  if (!start->status.ok()) return Fail(start->status);
  return Finish(start->result, start->call);
}

absl::Status NcclCommunicator::Connect() {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device_));
  TW_RETURN_IF_CUDA_ERROR(cudaSetDevice(device_.index), device_);
  struct Invitation {
    ncclUniqueId id;
    int64_t good;
  };
  Invitation invitation = {};
  ncclResult_t made = ncclSuccess;
  if (rank() == 0) {
    made = ncclGetUniqueId(&invitation.id);
    invitation.good = made == ncclSuccess ? 1 : 0;
  }
  TW_RETURN_IF_ERROR(control_->Broadcast(
      TensorView(&invitation, DType::kU8, {static_cast<int64_t>(sizeof(invitation))}), 0, host_));
  if (invitation.good == 0) {
    return Fail(absl::UnavailableError(
        absl::StrCat("rank 0 could not make an NCCL id: ", ncclGetErrorString(made))));
  }
  // Ways between pairs are made by the first message, which waits for the other side: now, so that
  // later calls only enqueue.
  if (options_.blocking) return ConnectInThread(invitation.id);
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  TW_RETURN_IF_ERROR(Finish(ncclCommInitRankConfig(&comm_, size(), invitation.id, rank(), &config),
                            "ncclCommInitRankConfig"));
  if (size() == 1) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(Stream stream, Stream::Cuda(device_, &pool_));
  TW_ASSIGN_OR_RETURN(const Buffer bytes, Buffer::Allocate(2 * size(), device_));
  std::vector<Message> messages;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    messages.push_back({r, bytes.data() + r, nullptr, 1});
    messages.push_back({r, nullptr, bytes.data() + size() + r, 1});
  }
  TW_RETURN_IF_ERROR(Transfer(messages, stream));
  bytes_sent_ = 0;
  return Wait(stream);
}

NcclCommunicator::~NcclCommunicator() {
  if (comm_ == nullptr) return;
  (void)cudaSetDevice(device_.index);
  set_timeout(std::min(timeout(), kLeaveTimeout));
  // Where ranks have failed, kernels stop before their memory goes.
  const bool alive = status().ok();
  peers_.reset();
  if (!alive) return;
  // NCCL itself would wait for the others without a bound.
  if (options_.blocking && !control_->Barrier(host_).ok()) {
    ncclCommAbort(std::exchange(comm_, nullptr));
    return;
  }
  // Waits for what is enqueued, and for the others to come here too.
  if (Finish(ncclCommFinalize(comm_), "ncclCommFinalize").ok()) {
    ncclCommDestroy(std::exchange(comm_, nullptr));
  }
}

absl::Status NcclCommunicator::Check(const ConstTensorView& view, const Stream& stream) const {
  if (!Supports(view.device()) && view.num_elements() > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("this communicator takes memory of ", DeviceName(device_), ", not ",
                     view.DebugString(), " on ", DeviceName(view.device())));
  }
  if (!Supports(stream.device())) {
    return absl::InvalidArgumentError(absl::StrCat("this communicator takes streams of ",
                                                   DeviceName(device_), ", not of ",
                                                   DeviceName(stream.device())));
  }
  if (!view.contiguous()) {
    return absl::InvalidArgumentError(absl::StrCat("collectives take contiguous tensors; ",
                                                   view.DebugString(), " has rows ",
                                                   view.row_stride(), " elements apart"));
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::CheckPeer(int peer) const {
  if (peer >= 0 && peer < size() && peer != rank()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("peer ", peer, " is not another rank of [0, ", size(), ")"));
}

absl::Status NcclCommunicator::Transfer(absl::Span<const Message> messages, Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  TW_RETURN_IF_ERROR(Finish(ncclGroupStart(), "ncclGroupStart"));
  ncclResult_t first = ncclSuccess;
  for (const Message& message : messages) {
    if (message.bytes == 0) continue;
    const auto bytes = static_cast<size_t>(message.bytes);
    const ncclResult_t result =
        message.out != nullptr
            ? ncclSend(message.out, bytes, ncclUint8, message.peer, comm_, native)
            : ncclRecv(message.in, bytes, ncclUint8, message.peer, comm_, native);
    if (message.out != nullptr) bytes_sent_ += message.bytes;
    if (first == ncclSuccess && result != ncclInProgress) first = result;
  }
  const ncclResult_t ended = ncclGroupEnd();
  return Finish(first != ncclSuccess ? first : ended, "ncclSend and ncclRecv");
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
  return Finish(ncclAllGather(in.raw(), out.mutable_raw(), static_cast<size_t>(bytes), ncclUint8,
                              comm_, CudaStream(stream)),
                "ncclAllGather");
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
  return Finish(ncclBroadcast(inout.raw(), inout.mutable_raw(), static_cast<size_t>(bytes),
                              ncclUint8, root, comm_, CudaStream(stream)),
                "ncclBroadcast");
}

absl::Status NcclCommunicator::Exchange(absl::Span<const ConstTensorView> out,
                                        absl::Span<const TensorView> in, Stream& stream) {
  if (static_cast<int>(out.size()) != size() || static_cast<int>(in.size()) != size()) {
    return absl::InvalidArgumentError(absl::StrCat("an exchange among ", size(), " ranks with ",
                                                   out.size(), " views to send and ", in.size(),
                                                   " to receive"));
  }
  std::vector<Message> messages;
  for (int r = 0; r < size(); ++r) {
    if (r == rank()) continue;
    if (out[r].num_elements() > 0) {
      TW_RETURN_IF_ERROR(Check(out[r], stream));
      messages.push_back({r, out[r].raw(), nullptr, out[r].size_bytes()});
    }
    if (in[r].num_elements() > 0) {
      TW_RETURN_IF_ERROR(Check(in[r], stream));
      messages.push_back({r, nullptr, in[r].mutable_raw(), in[r].size_bytes()});
    }
  }
  TW_RETURN_IF_ERROR(status());
  return messages.empty() ? absl::OkStatus() : Transfer(messages, stream);
}

absl::Status NcclCommunicator::Send(ConstTensorView in, int peer, Stream& stream) {
  TW_RETURN_IF_ERROR(Check(in, stream));
  TW_RETURN_IF_ERROR(CheckPeer(peer));
  TW_RETURN_IF_ERROR(status());
  int64_t bytes = in.size_bytes();
  if (options_.announces_sizes) {
    TW_RETURN_IF_ERROR(control_->Send(ConstTensorView(&bytes, DType::kI64, {1}), peer, host_));
  }
  const Message message = {peer, in.raw(), nullptr, bytes};
  return bytes == 0 ? absl::OkStatus() : Transfer({&message, 1}, stream);
}

absl::Status NcclCommunicator::Recv(TensorView out, int peer, Stream& stream) {
  TW_RETURN_IF_ERROR(Check(out, stream));
  TW_RETURN_IF_ERROR(CheckPeer(peer));
  TW_RETURN_IF_ERROR(status());
  int64_t bytes = out.size_bytes();
  if (options_.announces_sizes) {
    const absl::Status told = control_->Recv(TensorView(&bytes, DType::kI64, {1}), peer, host_);
    if (!told.ok()) return Fail(told);
  }
  if (bytes != out.size_bytes()) {
    return Fail(
        absl::InternalError(absl::StrCat("rank ", rank(), " expected ", out.size_bytes(),
                                         " bytes from rank ", peer, ", which sends ", bytes)));
  }
  const Message message = {peer, nullptr, out.mutable_raw(), bytes};
  return bytes == 0 ? absl::OkStatus() : Transfer({&message, 1}, stream);
}

absl::Status NcclCommunicator::Wait(Stream& stream) {
  TW_RETURN_IF_ERROR(status());
  if (stream.device().kind == DeviceKind::kCpu) return absl::OkStatus();
  const cudaStream_t native = CudaStream(stream);
  const absl::Status waited = PollUntil("a stream", [&]() -> absl::StatusOr<bool> {
    TW_ASSIGN_OR_RETURN(const bool idle, Idle(native, device_));
    if (idle && peers_ != nullptr) TW_RETURN_IF_ERROR(peers_->status());
    return idle;
  });
  if (waited.ok()) return waited;
  // What waited for other ranks ends with the communicator: then the stream can be used again.
  for (Backoff backoff(kDrainTimeout); backoff.Wait();) {
    if (Idle(native, device_).value_or(true)) break;
  }
  return waited;
}

absl::Status NcclCommunicator::Barrier(Stream& stream) {
  TW_RETURN_IF_ERROR(Wait(stream));
  const absl::Status met = control_->Barrier(host_);
  return met.ok() ? met : Fail(met);
}

absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::Split(int color, int key) {
  TW_RETURN_IF_ERROR(status());
  const int64_t before = control_->bytes_sent();
  absl::StatusOr<std::unique_ptr<Communicator>> control = control_->Split(color, key);
  bytes_sent_ += control_->bytes_sent() - before;
  if (!control.ok()) return Fail(control.status());
  if (*control == nullptr) return std::unique_ptr<Communicator>();
  return CreateNcclCommunicator(*std::move(control), device_, options_);
}

absl::StatusOr<std::unique_ptr<Communicator>> CreateNcclCommunicator(
    std::unique_ptr<Communicator> control, Device device, const NcclOptions& options) {
  auto made = std::make_unique<NcclCommunicator>(std::move(control), device, options);
  TW_RETURN_IF_ERROR(Annotate(made->Connect(), "making an NCCL communicator"));
  return std::unique_ptr<Communicator>(std::move(made));
}

std::string NcclVersion() {
  int version = 0;
  const ncclResult_t asked = ncclGetVersion(&version);
  if (asked != ncclSuccess) return ncclGetErrorString(asked);
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace thinwire
