#include "parallel/wire/wire.h"

#include <chrono>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/convert/convert.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr char kAccepted[] =
    "auto, fp16 (one-shot-q8/q6/q5/q4, token-owner-q8/q6/q5/q4 and exact are not in this build)";
constexpr int64_t kMaxMessageBytes = int64_t{1} << 32;

// Elements that a ring all-reduce of n elements over p ranks sends from `rank`: all chunks but its
// own while reducing, then its own to all others (as the sum over ranks: 2 (p-1) n).
int64_t RingAllReduceElements(int64_t n, int rank, int p) {
  const int64_t chunk = n * (rank + 1) / p - n * rank / p;
  return (n - chunk) + (p - 1) * chunk;
}

TensorView BytesView(void* data, int64_t size) { return TensorView(data, DType::kU8, {size}); }

}  // namespace

absl::StatusOr<WireFormat> ParseWireFormat(absl::string_view name) {
  if (name == "auto") return WireFormat::kNative;
  if (name == "fp16") return WireFormat::kFp16;
  absl::string_view bits = name;
  const bool coded =
      absl::ConsumePrefix(&bits, "one-shot-q") || absl::ConsumePrefix(&bits, "token-owner-q");
  if (name == "exact" || (coded && (bits == "8" || bits == "6" || bits == "5" || bits == "4"))) {
    return absl::UnimplementedError(
        absl::StrCat("--wire ", name, ": not in this build; expected one of ", kAccepted));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--wire ", name, ": unknown strategy; expected one of ", kAccepted));
}

absl::string_view WireFormatName(WireFormat format) {
  return format == WireFormat::kNative ? "native" : "fp16";
}

// Measures one call: payload from the communicator's own counter, time from the clock.
class Wire::Recording {
 public:
  // A receiver passes no logical bytes and no call: the sender has counted them.
  Recording(Ledger* ledger, Communicator* comm, Site site, int64_t logical_bytes, int64_t calls = 1)
      : ledger_(ledger),
        comm_(comm),
        site_(site),
        logical_bytes_(logical_bytes),
        calls_(calls),
        sent_before_(comm->bytes_sent()),
        start_(std::chrono::steady_clock::now()) {}
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // Records the call and passes its status on, with the site's name where it failed.
  absl::Status Done(const absl::Status& status, int64_t metadata_bytes = 0) {
    const auto elapsed = std::chrono::steady_clock::now() - start_;
    const int64_t sent = comm_->bytes_sent() - sent_before_;
    ledger_->Record(
        site_,
        {.logical_bytes = logical_bytes_,
         .payload_bytes = sent - metadata_bytes,
         .metadata_bytes = metadata_bytes,
         .calls = calls_,
         .transfer_us = std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count()});
    return Annotate(status, SiteName(site_));
  }

 private:
  Ledger* ledger_;
  Communicator* comm_;
  Site site_;
  int64_t logical_bytes_;
  int64_t calls_;
  int64_t sent_before_;
  std::chrono::steady_clock::time_point start_;
};

Wire::Wire(Communicator* tp, Communicator* world, WireFormat format, Ledger* ledger)
    : tp_(tp), world_(world), format_(format), ledger_(ledger) {}

absl::StatusOr<TensorView> Wire::Fp16Scratch(const ConstTensorView& like) {
  const int64_t n = like.num_elements();
  if (scratch_.size_bytes() < 2 * n) {
    TW_ASSIGN_OR_RETURN(scratch_, Buffer::Allocate(2 * n, like.device()));
  }
  if (like.rank() == 2) {
    return TensorView(scratch_.data(), DType::kF16, {like.dim(0), like.dim(1)}, like.device());
  }
  return TensorView(scratch_.data(), DType::kF16, {n}, like.device());
}

absl::Status Wire::AllReduce(Site site, TensorView inout, Stream& stream) {
  if (tp_->size() == 1) return absl::OkStatus();
  const int64_t logical_bytes =
      2 * RingAllReduceElements(inout.num_elements(), tp_->rank(), tp_->size());
  if (format_ == WireFormat::kFp16 && inout.dtype() != DType::kF16) {
    TW_ASSIGN_OR_RETURN(const TensorView half, Fp16Scratch(inout));
    TW_RETURN_IF_ERROR(Convert(inout, half, stream));
    Recording recording(ledger_, tp_, site, logical_bytes);
    TW_RETURN_IF_ERROR(recording.Done(tp_->AllReduce(half, ReduceOp::kSum, stream)));
    return Convert(half, inout, stream);
  }
  Recording recording(ledger_, tp_, site, logical_bytes);
  return recording.Done(tp_->AllReduce(inout, ReduceOp::kSum, stream));
}

absl::Status Wire::AllReduceMax(Site site, TensorView inout, Stream& stream) {
  if (tp_->size() == 1) return absl::OkStatus();
  const int64_t sent_before = tp_->bytes_sent();
  Recording recording(ledger_, tp_, site, /*logical_bytes=*/0);
  const absl::Status status = tp_->AllReduce(inout, ReduceOp::kMax, stream);
  return recording.Done(status, tp_->bytes_sent() - sent_before);
}

absl::Status Wire::SendHop(ConstTensorView residual, int peer, Stream& stream) {
  const int64_t logical_bytes = 2 * residual.num_elements();
  if (format_ == WireFormat::kFp16 && residual.dtype() != DType::kF16) {
    TW_ASSIGN_OR_RETURN(const TensorView half, Fp16Scratch(residual));
    TW_RETURN_IF_ERROR(Convert(residual, half, stream));
    Recording recording(ledger_, world_, Site::kStageHop, logical_bytes);
    return recording.Done(world_->Send(half, peer, stream));
  }
  Recording recording(ledger_, world_, Site::kStageHop, logical_bytes);
  return recording.Done(world_->Send(residual, peer, stream));
}

absl::Status Wire::RecvHop(TensorView residual, int peer, Stream& stream) {
  if (format_ == WireFormat::kFp16 && residual.dtype() != DType::kF16) {
    TW_ASSIGN_OR_RETURN(const TensorView half, Fp16Scratch(residual));
    Recording recording(ledger_, world_, Site::kStageHop, 0, 0);
    TW_RETURN_IF_ERROR(recording.Done(world_->Recv(half, peer, stream)));
    return Convert(half, residual, stream);
  }
  Recording recording(ledger_, world_, Site::kStageHop, 0, 0);
  return recording.Done(world_->Recv(residual, peer, stream));
}

absl::Status Wire::SendInGroup(Site site, ConstTensorView in, int tp_peer, Stream& stream) {
  Recording recording(ledger_, tp_, site, 2 * in.num_elements());
  return recording.Done(tp_->Send(in, tp_peer, stream));
}

absl::Status Wire::RecvInGroup(Site site, TensorView out, int tp_peer, Stream& stream) {
  Recording recording(ledger_, tp_, site, 0, 0);
  return recording.Done(tp_->Recv(out, tp_peer, stream));
}

absl::Status Wire::SendBytes(absl::string_view bytes, int peer, Stream& stream) {
  int64_t length = static_cast<int64_t>(bytes.size());
  Recording recording(ledger_, world_, Site::kControl, length + 8);
  absl::Status status = world_->Send(BytesView(&length, sizeof(length)), peer, stream);
  if (status.ok() && length > 0) {
    status = world_->Send(ConstTensorView(bytes.data(), DType::kU8, {length}), peer, stream);
  }
  return recording.Done(status, /*metadata_bytes=*/8);
}

absl::StatusOr<std::string> Wire::RecvBytes(int peer, Stream& stream) {
  Recording recording(ledger_, world_, Site::kControl, 0, 0);
  int64_t length = 0;
  absl::Status status = world_->Recv(BytesView(&length, sizeof(length)), peer, stream);
  if (status.ok() && (length < 0 || length > kMaxMessageBytes)) {
    status = absl::InternalError(
        absl::StrCat("message from rank ", peer, " announces ", length, " bytes"));
  }
  std::string bytes;
  if (status.ok() && length > 0) {
    bytes.resize(length);
    status = world_->Recv(BytesView(bytes.data(), length), peer, stream);
  }
  TW_RETURN_IF_ERROR(recording.Done(status));
  return bytes;
}

}  // namespace thinwire
