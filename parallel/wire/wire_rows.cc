// Wire's rows: shared in the tensor-parallel group, and sent on to the next stage.
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "parallel/wire/peer_codes.h"
#include "parallel/wire/recording.h"
#include "parallel/wire/wire.h"

namespace thinwire {

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
            .row_bytes = row_bytes,
            .on_gpu = all.device().kind == DeviceKind::kCuda};
  }
  TensorView message(int r) const {
    // Apart by what any message has beside its rows, from whole kPadding on.
    const int64_t before = offsets[r] * row_bytes + MessageKey::kPadding - 1;
    return Part(all, (before / MessageKey::kPadding + 2 * r) * MessageKey::kPadding,
                key(r).message_bytes());
  }
};

absl::Status Wire::Share(Site site, ShareAs as, TensorView rows, Stream& stream) {
  return Share(site, as, rows, BlockOffsets(rows.dim(0)), stream);
}

absl::Status Wire::Share(Site site, ShareAs as, TensorView rows, absl::Span<const int64_t> offsets,
                         Stream& stream) {
  TW_CHECK(tp_->size() > 1);
  RowCodec codec;
  if (as == ShareAs::kFp16 && !exact()) codec.kind = RowCodec::Kind::kFp16;
  if (as == ShareAs::kCodes && !exact()) codec = {RowCodec::Kind::kCodes, NormBits(options_)};
  PeerMemory* const peers = PeersFor(codec, rows);
  Recording recording(ledger_, tp_, site, /*logical_bytes=*/0);
  if constexpr (kHasCuda) {
    if (peers != nullptr) {
      const int64_t own = offsets[tp_->rank() + 1] - offsets[tp_->rank()];
      recording.AddMetadata((tp_->size() - 1) * own * codec.RowMetadataBytes(rows.dim(1)));
      if (rows.dim(0) == 0) return recording.Done(absl::OkStatus());
      return recording.Done(
          ExchangeThroughPeers(*peers, PeerExchange::kShare, codec, rows, offsets, stream));
    }
  }
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
  TW_ASSIGN_OR_RETURN(blocks.all, Bytes(incoming_,
                                        rows.dim(0) * blocks.row_bytes +
                                            (2 * tp_->size() + 1) * MessageKey::kPadding,
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
    recording.AddMetadata(
        (p - 1) * (own.num_rows * blocks.codec.RowMetadataBytes(rows.dim(1)) + own.extra_bytes()));
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

absl::Status Wire::SendHop(ConstTensorView residual, int peer, Stream& stream) {
  const Range own = BlockOf(residual.dim(0), tp_->rank());
  const RowCodec& codec = options_.hop;
  const MessageKey key = {.site = Site::kStageHop,
                          .codec = codec,
                          .sender = world_->rank(),
                          .num_rows = own.size(),
                          .row_bytes = codec.RowBytes(residual.dim(1), residual.dtype()),
                          .on_gpu = residual.device().kind == DeviceKind::kCuda};
  Recording recording(ledger_, world_, Site::kStageHop, 2 * residual.num_elements());
  if (own.size() == 0) return recording.Done(absl::OkStatus());
  recording.AddMetadata(own.size() * codec.RowMetadataBytes(residual.dim(1)) + key.extra_bytes());
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

}  // namespace thinwire
