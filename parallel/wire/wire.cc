#include "parallel/wire/wire.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

using Kind = WireStrategy::Kind;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMaxMessageBytes = int64_t{1} << 32;

// Elements that a ring all-reduce of n elements over p ranks sends from `rank`: all chunks but its
// own while reducing, then its own to all others (as the sum over ranks: 2 (p-1) n).
int64_t RingAllReduceElements(int64_t n, int rank, int p) {
  const int64_t chunk = n * (rank + 1) / p - n * rank / p;
  return (n - chunk) + (p - 1) * chunk;
}

TensorView BytesView(void* data, int64_t size) { return TensorView(data, DType::kU8, {size}); }

// Bytes [begin, begin + count) of a view of bytes.
TensorView Part(const TensorView& bytes, int64_t begin, int64_t count) {
  return bytes.Rows(begin, count);
}

// The rows of a message, or room for them.
TensorView RowsOf(const MessageKey& key, const TensorView& message) {
  return TensorView(message.mutable_raw(), DType::kU8, {key.num_rows, key.row_bytes},
                    message.device());
}

}  // namespace

// One message of every rank of the group, one behind the other.
struct Wire::Blocks {
  Site site;
  RowCodec codec;
  absl::Span<const int64_t> offsets;  // rank r's rows are [offsets[r], offsets[r + 1])
  int64_t row_bytes;
  TensorView all;

  MessageKey key(int r) const {
    return {.site = site,
            .codec = codec,
            .sender = r,
            .num_rows = offsets[r + 1] - offsets[r],
            .row_bytes = row_bytes};
  }
  TensorView message(int r) const {
    return Part(all, offsets[r] * row_bytes + r * MessageKey::kCheckBytes, key(r).message_bytes());
  }
};

// Measures one call: bytes from the communicator's own counter, time from the clock, which runs for
// the codec first.
class Wire::Recording {
 public:
  // A receiver passes no logical bytes and no call: the sender has counted them.
  Recording(Ledger* ledger, Communicator* comm, Site site, int64_t logical_bytes, int64_t calls = 1)
      : ledger_(ledger),
        comm_(comm),
        site_(site),
        entry_({.logical_bytes = logical_bytes, .calls = calls}),
        sent_before_(comm->bytes_sent()),
        since_(Clock::now()) {}
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  void InCodec() { Switch(&entry_.codec_ns); }
  void InTransfer() { Switch(&entry_.transfer_ns); }
  void AddMetadata(int64_t bytes) { entry_.metadata_bytes += bytes; }

  // Records the call and passes its status on, with the site's name where it failed.
  absl::Status Done(const absl::Status& status) {
    Switch(&entry_.codec_ns);
    entry_.payload_bytes = comm_->bytes_sent() - sent_before_ - entry_.metadata_bytes;
    ledger_->Record(site_, entry_);
    return Annotate(status, SiteName(site_));
  }

 private:
  void Switch(int64_t* clock) {
    const Clock::time_point now = Clock::now();
    *running_ += std::chrono::duration_cast<std::chrono::nanoseconds>(now - since_).count();
    since_ = now;
    running_ = clock;
  }

  Ledger* ledger_;
  Communicator* comm_;
  Site site_;
  LedgerEntry entry_;
  int64_t sent_before_;
  Clock::time_point since_;
  int64_t* running_ = &entry_.codec_ns;
};

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
  }
  return TensorView(buffer.data(), DType::kU8, {bytes}, device);
}

absl::StatusOr<TensorView> Wire::Fp16Scratch(const ConstTensorView& like) {
  TW_ASSIGN_OR_RETURN(const TensorView bytes,
                      Bytes(scratch_, 2 * like.num_elements(), like.device()));
  if (like.rank() == 2) {
    return TensorView(bytes.mutable_raw(), DType::kF16, {like.dim(0), like.dim(1)}, like.device());
  }
  return TensorView(bytes.mutable_raw(), DType::kF16, {like.num_elements()}, like.device());
}

absl::Status Wire::Reduce(Site site, TensorView inout, Stream& stream) {
  switch (StrategyFor(inout.dim(0)).kind) {
    case Kind::kNative:
    case Kind::kFp16:
      return AllReduce(site, inout, stream);
    case Kind::kOneShot:
      return ReduceInOneShot(site, inout, stream);
    case Kind::kTokenOwner:
      return ReduceToOwners(site, inout, stream);
  }
  return absl::InternalError("unknown wire strategy");
}

absl::Status Wire::AllReduce(Site site, TensorView inout, Stream& stream) {
  if (tp_->size() == 1) return absl::OkStatus();
  Recording recording(ledger_, tp_, site,
                      2 * RingAllReduceElements(inout.num_elements(), tp_->rank(), tp_->size()));
  const auto run = [&]() -> absl::Status {
    if (options_.strategy.kind == Kind::kNative || inout.dtype() == DType::kF16) {
      recording.InTransfer();
      return tp_->AllReduce(inout, ReduceOp::kSum, stream);
    }
    TW_ASSIGN_OR_RETURN(const TensorView half, Fp16Scratch(inout));
    TW_RETURN_IF_ERROR(Convert(inout, half, stream));
    recording.InTransfer();
    TW_RETURN_IF_ERROR(tp_->AllReduce(half, ReduceOp::kSum, stream));
    recording.InCodec();
    return Convert(half, inout, stream);
  };
  return recording.Done(run());
}

absl::Status Wire::ReduceInOneShot(Site site, TensorView inout, Stream& stream) {
  const int p = tp_->size();
  const int64_t n = inout.dim(0);
  if (p == 1 || n == 0) return absl::OkStatus();
  const RowCodec codec = CodesFor(n);
  MessageKey key = {.site = site,
                    .codec = codec,
                    .sender = tp_->rank(),
                    .num_rows = n,
                    .row_bytes = codec.RowBytes(inout.dim(1), inout.dtype())};
  const int64_t bytes = key.message_bytes();
  Recording recording(ledger_, tp_, site,
                      2 * RingAllReduceElements(inout.num_elements(), tp_->rank(), p));
  recording.AddMetadata((p - 1) *
                        (n * codec.RowMetadataBytes(inout.dim(1)) + MessageKey::kCheckBytes));
  const auto run = [&]() -> absl::Status {
    TW_ASSIGN_OR_RETURN(const TensorView all, Bytes(incoming_, p * bytes, inout.device()));
    const TensorView own = Part(all, tp_->rank() * bytes, bytes);
    TW_RETURN_IF_ERROR(EncodeRows(codec, inout, RowsOf(key, own), stream));
    SealMessage(key, own);
    recording.InTransfer();
    TW_RETURN_IF_ERROR(tp_->AllGather(own, all, stream));
    recording.InCodec();
    std::vector<ConstTensorView> parts;
    for (key.sender = 0; key.sender < p; ++key.sender) {
      const TensorView message = Part(all, key.sender * bytes, bytes);
      TW_RETURN_IF_ERROR(CheckMessage(key, message));
      parts.push_back(RowsOf(key, message));
    }
    return DecodeRows(codec, parts, inout, stream);
  };
  return recording.Done(run());
}

absl::Status Wire::ReduceToOwners(Site site, TensorView inout, Stream& stream) {
  const int p = tp_->size();
  const int rank = tp_->rank();
  const int64_t n = inout.dim(0);
  if (p == 1 || n == 0) return absl::OkStatus();
  const RowCodec codec = CodesFor(n);
  const int64_t row_bytes = codec.RowBytes(inout.dim(1), inout.dtype());
  const Range own = BlockOf(n, rank);
  // What `sender` sends to the owner of `rows`.
  const auto key_of = [&](int sender, Range rows) {
    return MessageKey{.site = site,
                      .codec = codec,
                      .sender = sender,
                      .num_rows = rows.size(),
                      .row_bytes = row_bytes};
  };
  Recording recording(ledger_, tp_, site, 2 * RingAllReduceElements(inout.num_elements(), rank, p));
  const auto run = [&]() -> absl::Status {
    TW_ASSIGN_OR_RETURN(
        const TensorView sent,
        Bytes(outgoing_, n * row_bytes + p * MessageKey::kCheckBytes, inout.device()));
    const int64_t own_bytes = key_of(rank, own).message_bytes();
    TW_ASSIGN_OR_RETURN(const TensorView received, Bytes(incoming_, p * own_bytes, inout.device()));
    std::vector<ConstTensorView> out(p);
    std::vector<TensorView> in(p);
    int64_t begin = 0;
    for (int r = 0; r < p; ++r) {
      const Range block = BlockOf(n, r);
      if (r == rank || block.size() == 0) continue;
      const MessageKey key = key_of(rank, block);
      const TensorView message = Part(sent, begin, key.message_bytes());
      begin += key.message_bytes();
      TW_RETURN_IF_ERROR(
          EncodeRows(codec, inout.Rows(block.begin, block.size()), RowsOf(key, message), stream));
      SealMessage(key, message);
      out[r] = message;
      recording.AddMetadata(block.size() * codec.RowMetadataBytes(inout.dim(1)) +
                            MessageKey::kCheckBytes);
    }
    for (int r = 0; r < p && own.size() > 0; ++r) {
      if (r != rank) in[r] = Part(received, r * own_bytes, own_bytes);
    }
    recording.InTransfer();
    TW_RETURN_IF_ERROR(tp_->Exchange(out, in, stream));
    recording.InCodec();
    if (own.size() == 0) return absl::OkStatus();
    std::vector<ConstTensorView> parts;
    for (int r = 0; r < p; ++r) {
      if (r == rank) continue;
      TW_RETURN_IF_ERROR(CheckMessage(key_of(r, own), in[r]));
      parts.push_back(RowsOf(key_of(r, own), in[r]));
    }
    // Nobody else keeps these rows: this rank's own part need not become what others would decode.
    return AddDecodedRows(codec, parts, inout.Rows(own.begin, own.size()), stream);
  };
  return recording.Done(run());
}

absl::Status Wire::Share(Site site, ShareAs as, TensorView rows, Stream& stream) {
  return Share(site, as, rows, BlockOffsets(rows.dim(0)), stream);
}

absl::Status Wire::Share(Site site, ShareAs as, TensorView rows, absl::Span<const int64_t> offsets,
                         Stream& stream) {
  TW_CHECK(tp_->size() > 1);
  RowCodec codec;
  if (as == ShareAs::kFp16) codec.kind = RowCodec::Kind::kFp16;
  if (as == ShareAs::kCodes) {
    codec = {RowCodec::Kind::kCodes, NormBits(options_)};
  }
  Recording recording(ledger_, tp_, site, /*logical_bytes=*/0);
  return recording.Done(ShareEncoded(site, codec, rows, offsets, recording, stream));
}

absl::Status Wire::ShareEncoded(Site site, const RowCodec& codec, TensorView rows,
                                absl::Span<const int64_t> offsets, Recording& recording,
                                Stream& stream) {
  TW_CHECK_EQ(static_cast<int64_t>(offsets.size()), int64_t{tp_->size()} + 1);
  TW_CHECK_EQ(offsets.back(), rows.dim(0));
  if (rows.dim(0) == 0) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(const Blocks blocks, BlocksFor(site, codec, rows, offsets));
  const MessageKey own = blocks.key(tp_->rank());
  if (own.num_rows > 0) {
    const TensorView message = blocks.message(tp_->rank());
    TW_RETURN_IF_ERROR(EncodeRows(codec, rows.Rows(offsets[tp_->rank()], own.num_rows),
                                  RowsOf(own, message), stream));
  }
  return ExchangeBlocks(blocks, rows, recording, stream);
}

absl::StatusOr<Wire::Blocks> Wire::BlocksFor(Site site, const RowCodec& codec, ConstTensorView rows,
                                             absl::Span<const int64_t> offsets) {
  Blocks blocks = {.site = site,
                   .codec = codec,
                   .offsets = offsets,
                   .row_bytes = codec.RowBytes(rows.dim(1), rows.dtype()),
                   .all = {}};
  TW_ASSIGN_OR_RETURN(
      blocks.all,
      Bytes(incoming_, rows.dim(0) * blocks.row_bytes + tp_->size() * MessageKey::kCheckBytes,
            rows.device()));
  return blocks;
}

absl::Status Wire::ExchangeBlocks(const Blocks& blocks, TensorView rows, Recording& recording,
                                  Stream& stream) {
  const int p = tp_->size();
  const int rank = tp_->rank();
  std::vector<ConstTensorView> out(p);
  std::vector<TensorView> in(p);
  if (const MessageKey own = blocks.key(rank); own.num_rows > 0) {
    SealMessage(own, blocks.message(rank));
    for (int r = 0; r < p; ++r) {
      if (r != rank) out[r] = blocks.message(rank);
    }
    recording.AddMetadata((p - 1) * (own.num_rows * blocks.codec.RowMetadataBytes(rows.dim(1)) +
                                     MessageKey::kCheckBytes));
  }
  for (int r = 0; r < p; ++r) {
    if (r != rank && blocks.key(r).num_rows > 0) in[r] = blocks.message(r);
  }
  recording.InTransfer();
  TW_RETURN_IF_ERROR(tp_->Exchange(out, in, stream));
  recording.InCodec();
  for (int r = 0; r < p; ++r) {
    const MessageKey key = blocks.key(r);
    if (key.num_rows == 0) continue;
    if (r != rank) TW_RETURN_IF_ERROR(CheckMessage(key, blocks.message(r)));
    const ConstTensorView part = RowsOf(key, blocks.message(r));
    TW_RETURN_IF_ERROR(
        DecodeRows(blocks.codec, {&part, 1}, rows.Rows(blocks.offsets[r], key.num_rows), stream));
  }
  return absl::OkStatus();
}

absl::Status Wire::AllReduceMax(Site site, TensorView inout, Stream& stream) {
  if (tp_->size() == 1) return absl::OkStatus();
  const int64_t sent_before = tp_->bytes_sent();
  Recording recording(ledger_, tp_, site, /*logical_bytes=*/0);
  recording.InTransfer();
  const absl::Status status = tp_->AllReduce(inout, ReduceOp::kMax, stream);
  recording.AddMetadata(tp_->bytes_sent() - sent_before);
  return recording.Done(status);
}

absl::Status Wire::SendHop(ConstTensorView residual, int peer, Stream& stream) {
  const Range own = BlockOf(residual.dim(0), tp_->rank());
  const RowCodec& codec = options_.hop;
  const MessageKey key = {.site = Site::kStageHop,
                          .codec = codec,
                          .sender = world_->rank(),
                          .num_rows = own.size(),
                          .row_bytes = codec.RowBytes(residual.dim(1), residual.dtype())};
  Recording recording(ledger_, world_, Site::kStageHop, 2 * residual.num_elements());
  if (own.size() == 0) return recording.Done(absl::OkStatus());
  recording.AddMetadata(own.size() * codec.RowMetadataBytes(residual.dim(1)) +
                        MessageKey::kCheckBytes);
  const auto run = [&]() -> absl::Status {
    TW_ASSIGN_OR_RETURN(const TensorView message,
                        Bytes(outgoing_, key.message_bytes(), residual.device()));
    TW_RETURN_IF_ERROR(
        EncodeRows(codec, residual.Rows(own.begin, own.size()), RowsOf(key, message), stream));
    SealMessage(key, message);
    recording.InTransfer();
    return world_->Send(message, peer, stream);
  };
  return recording.Done(run());
}

absl::Status Wire::RecvHop(TensorView residual, int peer, Stream& stream) {
  const int64_t n = residual.dim(0);
  const std::vector<int64_t> offsets = BlockOffsets(n);
  const int rank = tp_->rank();
  const Range own = BlockOf(n, rank);
  TW_ASSIGN_OR_RETURN(const Blocks blocks,
                      BlocksFor(Site::kStageHop, options_.hop, residual, offsets));
  MessageKey key = blocks.key(rank);
  key.sender = peer;
  if (own.size() > 0) {
    Recording recording(ledger_, world_, Site::kStageHop, 0, 0);
    recording.InTransfer();
    absl::Status status = world_->Recv(blocks.message(rank), peer, stream);
    if (status.ok()) status = CheckMessage(key, blocks.message(rank));
    TW_RETURN_IF_ERROR(recording.Done(status));
  }
  // What was received goes on to the others as it is: all decode the same bytes.
  Recording recording(ledger_, tp_, Site::kStageHop, 0, 0);
  if (tp_->size() > 1 && keeps_all_rows(n)) {
    return recording.Done(ExchangeBlocks(blocks, residual, recording, stream));
  }
  if (own.size() == 0) return absl::OkStatus();
  const ConstTensorView rows = RowsOf(key, blocks.message(rank));
  return recording.Done(
      DecodeRows(options_.hop, {&rows, 1}, residual.Rows(own.begin, own.size()), stream));
}

absl::Status Wire::SendInGroup(Site site, ConstTensorView in, int tp_peer, Stream& stream) {
  Recording recording(ledger_, tp_, site, 2 * in.num_elements());
  recording.InTransfer();
  return recording.Done(tp_->Send(in, tp_peer, stream));
}

absl::Status Wire::RecvInGroup(Site site, TensorView out, int tp_peer, Stream& stream) {
  Recording recording(ledger_, tp_, site, 0, 0);
  recording.InTransfer();
  return recording.Done(tp_->Recv(out, tp_peer, stream));
}

absl::Status Wire::SendBytes(absl::string_view bytes, int peer, Stream& stream) {
  int64_t length = static_cast<int64_t>(bytes.size());
  Recording recording(ledger_, world_, Site::kControl, length + 8);
  recording.InTransfer();
  recording.AddMetadata(8);
  absl::Status status = world_->Send(BytesView(&length, sizeof(length)), peer, stream);
  if (status.ok() && length > 0) {
    status = world_->Send(ConstTensorView(bytes.data(), DType::kU8, {length}), peer, stream);
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
    status = world_->Recv(BytesView(bytes.data(), length), peer, stream);
  }
  TW_RETURN_IF_ERROR(recording.Done(status));
  return bytes;
}

}  // namespace thinwire
