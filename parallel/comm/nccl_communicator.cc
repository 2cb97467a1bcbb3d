#include "parallel/comm/nccl_communicator.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
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
  // At once: freeing one's memory may wait for the kernels of all.
  std::vector<std::thread> enders;
  for (const ncclComm_t comm : std::exchange(comms_, {})) {
    enders.emplace_back([comm, device = device_] {
      (void)cudaSetDevice(device.index);
      ncclCommAbort(comm);
    });
  }
  for (std::thread& ender : enders) ender.join();
  return failure_;
}

absl::Status NcclCommunicator::status() {
  if (!failure_.ok()) return failure_;
  absl::Status told = control_->status();
  if (told.ok() && peers_ != nullptr) told = peers_->status();
  if (!told.ok()) return Fail(told);
  for (const ncclComm_t comm : comms_) {
    ncclResult_t state = ncclSuccess;
    if (ncclCommGetAsyncError(comm, &state) != ncclSuccess || state == ncclSuccess ||
        state == ncclInProgress) {
      continue;
    }
    return Fail(absl::UnavailableError(
        absl::StrCat("NCCL on rank ", rank(), ", ", DeviceName(device_), ": ",
                     ncclGetErrorString(state), ": ", ncclGetLastError(comm))));
  }
  return absl::OkStatus();
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

absl::Status NcclCommunicator::PollUntil(absl::string_view what,
                                         absl::FunctionRef<absl::StatusOr<bool>()> done) {
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

absl::Status NcclCommunicator::Finish(size_t i, ncclResult_t result, absl::string_view call) {
  const ncclComm_t comm = comms_[i];
  const auto error = [&](ncclResult_t code) {
    const std::string text =
        absl::StrCat(call, " on rank ", rank(), ", ", DeviceName(device_), ": ",
                     ncclGetErrorString(code), ": ", ncclGetLastError(comm));
    if (code == ncclInvalidArgument || code == ncclInvalidUsage || code == ncclInternalError) {
      return absl::InternalError(text);
    }
    return absl::UnavailableError(text);
  };
  if (result == ncclSuccess) return absl::OkStatus();
  if (result != ncclInProgress) return Fail(error(result));
  return PollUntil(call, [&]() -> absl::StatusOr<bool> {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
    if (asked != ncclSuccess) return error(asked);
    if (state == ncclInProgress) return false;
    if (state != ncclSuccess) return error(state);
    return true;
  });
}

NcclCommunicator::~NcclCommunicator() {
  if (comms_.empty()) return;
  (void)cudaSetDevice(device_.index);
  set_timeout(std::min(timeout(), kLeaveTimeout));
  // Where ranks have failed, kernels stop before their memory goes.
  const bool alive = status().ok();
  peers_.reset();
  if (!alive) return;
  // NCCL itself would wait for the others without a bound.
  if (options_.blocking) {
    const absl::Status met = control_->Barrier(host_);
    if (!met.ok()) {
      Fail(met).IgnoreError();
      return;
    }
  }
  Leave(0).IgnoreError();
}

absl::Status NcclCommunicator::Leave(size_t first) {
  while (comms_.size() > first) {
    // Waits for what is enqueued, and for the others to come here too.
    TW_RETURN_IF_ERROR(
        Finish(comms_.size() - 1, ncclCommFinalize(comms_.back()), "ncclCommFinalize"));
    ncclCommDestroy(comms_.back());
    comms_.pop_back();
  }
  return absl::OkStatus();
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
