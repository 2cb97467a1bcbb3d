#include "parallel/wire/wire.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "parallel/wire/peer_codes.h"
#include "parallel/wire/recording.h"

namespace thinwire {
namespace {

constexpr int64_t kMaxMessageBytes = int64_t{1} << 32;

// Of a byte string: MPI passes on so much at once. It would ask for the sender's help with more,
// who may by then be inside a GPU's driver, waiting for what the receiver has to do first.
constexpr int64_t kMostAtOnce = 2048;

// Calls pass(begin, count) for one piece of `bytes` bytes after the other.
absl::Status InPieces(int64_t bytes, absl::FunctionRef<absl::Status(int64_t, int64_t)> pass) {
  for (int64_t begin = 0; begin < bytes; begin += kMostAtOnce) {
    TW_RETURN_IF_ERROR(pass(begin, std::min(kMostAtOnce, bytes - begin)));
  }
  return absl::OkStatus();
}

TensorView BytesView(void* data, int64_t size) { return TensorView(data, DType::kU8, {size}); }

}  // namespace

Wire::Wire(Communicator* tp, Communicator* world, const WireOptions& options, Ledger* ledger)
    : tp_(tp), world_(world), options_(options), ledger_(ledger) {}

Range Wire::BlockOf(int64_t num_rows, int rank) const {
  const int64_t p = tp_->size();
  return {num_rows * rank / p, num_rows * (rank + 1) / p};
}

std::vector<int64_t> Wire::BlockOffsets(int64_t num_rows) const {
  std::vector<int64_t> offsets = {0};
  for (int r = 0; r < tp_->size(); ++r) offsets.push_back(BlockOf(num_rows, r).end);
  return offsets;
}

Range Wire::OwnRows(int64_t num_rows) const {
  return keeps_all_rows(num_rows) ? Range{0, num_rows} : BlockOf(num_rows, tp_->rank());
}

std::vector<int64_t> Wire::OffsetsOf(absl::Span<const int32_t> picked, int64_t num_rows) const {
  std::vector<int64_t> offsets = {0};
  for (int r = 0; r < tp_->size(); ++r) {
    const auto end = std::lower_bound(picked.begin(), picked.end(), BlockOf(num_rows, r).end);
    offsets.push_back(end - picked.begin());
  }
  return offsets;
}

absl::StatusOr<TensorView> Wire::Bytes(Buffer& buffer, int64_t bytes, Device device) {
  if (buffer.size_bytes() < bytes) {
    TW_ASSIGN_OR_RETURN(buffer, Buffer::Allocate(bytes, device));
    ++num_allocations_;
  }
  return TensorView(buffer.data(), DType::kU8, {bytes}, device);
}

PeerMemory* Wire::PeersFor(const RowCodec& codec, const ConstTensorView& rows) {
  if constexpr (kHasCuda) {
    if (!PeersExchange(codec, rows)) return nullptr;
    const absl::StatusOr<PeerMemory*> peers = tp_->Peers();
    if (peers.ok()) return *peers;
  }
  return nullptr;
}

absl::StatusOr<TensorView> Wire::Fp16Scratch(const ConstTensorView& like) {
  TW_ASSIGN_OR_RETURN(const TensorView bytes,
                      Bytes(scratch_, 2 * like.num_elements(), like.device()));
  if (like.rank() == 2) {
    return TensorView(bytes.mutable_raw(), DType::kF16, {like.dim(0), like.dim(1)}, like.device());
  }
  return TensorView(bytes.mutable_raw(), DType::kF16, {like.num_elements()}, like.device());
}

absl::Status Wire::SendInGroup(Site site, ConstTensorView in, int tp_peer, Stream& stream) {
  Recording recording(ledger_, tp_, site, 2 * in.num_elements());
  const auto run = [&]() -> absl::Status {
    if (sends_whole_values() || in.dtype() == DType::kF16) {
      recording.InTransfer();
      return tp_->Send(in, tp_peer, stream);
    }
    TW_ASSIGN_OR_RETURN(const TensorView half, Fp16Scratch(in));
    TW_RETURN_IF_ERROR(Convert(in, half, stream));
    recording.InTransfer();
    return tp_->Send(half, tp_peer, stream);
  };
  return recording.Done(run());
}

absl::Status Wire::RecvInGroup(Site site, TensorView out, int tp_peer, Stream& stream) {
  Recording recording(ledger_, tp_, site, 0, 0);
  const auto run = [&]() -> absl::Status {
    if (sends_whole_values() || out.dtype() == DType::kF16) {
      recording.InTransfer();
      return tp_->Recv(out, tp_peer, stream);
    }
    TW_ASSIGN_OR_RETURN(const TensorView half, Fp16Scratch(out));
    recording.InTransfer();
    TW_RETURN_IF_ERROR(tp_->Recv(half, tp_peer, stream));
    recording.InCodec();
    return Convert(half, out, stream);
  };
  return recording.Done(run());
}

absl::Status Wire::BroadcastInGroup(Site site, TensorView inout, Stream& stream) {
  if (tp_->size() == 1) return absl::OkStatus();
  const bool sends = tp_->rank() == 0;
  const int64_t bytes = (tp_->size() - 1) * inout.size_bytes();
  Recording recording(ledger_, tp_, site, sends ? bytes : 0, sends ? 1 : 0);
  recording.InTransfer();
  return recording.Done(tp_->Broadcast(inout, 0, stream));
}

absl::Status Wire::SendBytes(absl::string_view bytes, int peer, Stream& stream) {
  int64_t length = static_cast<int64_t>(bytes.size());
  Recording recording(ledger_, world_, Site::kControl, length + 8);
  recording.InTransfer();
  recording.AddMetadata(8);
  absl::Status status = world_->Send(BytesView(&length, sizeof(length)), peer, stream);
  if (status.ok()) {
    status = InPieces(length, [&](int64_t begin, int64_t count) {
      return world_->Send(ConstTensorView(bytes.data() + begin, DType::kU8, {count}), peer, stream);
    });
  }
  return recording.Done(status);
}

absl::StatusOr<std::string> Wire::RecvBytes(int peer, Stream& stream) {
  Recording recording(ledger_, world_, Site::kControl, 0, 0);
  recording.InTransfer();
  int64_t length = 0;
  absl::Status status = world_->Recv(BytesView(&length, sizeof(length)), peer, stream);
  if (status.ok() && (length < 0 || length > kMaxMessageBytes)) {
    status = absl::InternalError(
        absl::StrCat("message from rank ", peer, " announces ", length, " bytes"));
  }
  std::string bytes;
  if (status.ok() && length > 0) {
    bytes.resize(length);
    status = InPieces(length, [&](int64_t begin, int64_t count) {
      return world_->Recv(BytesView(bytes.data() + begin, count), peer, stream);
    });
  }
  TW_RETURN_IF_ERROR(recording.Done(status));
  return bytes;
}

}  // namespace thinwire
