// Wire's columns, for layers cut by output features: gathered as inputs, collected as outputs.
#include <cstring>
#include <vector>

#include "absl/status/status.h"
#include "kernels/core/check.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "parallel/wire/recording.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

// Host rows of bytes, one after the other, to columns of wider rows of bytes.
void PlaceColumns(const ConstTensorView& rows, std::byte* to, int64_t to_stride) {
  const auto* from = static_cast<const std::byte*>(rows.raw());
  const int64_t width = rows.dim(1);
  for (int64_t i = 0; i < rows.dim(0); ++i) {
    std::memcpy(to + i * to_stride, from + i * width, static_cast<size_t>(width));
  }
}

// A matrix as rows of bytes.
TensorView AsBytes(const ConstTensorView& rows) {
  return TensorView(const_cast<void*>(rows.raw()), DType::kU8,
                    {rows.dim(0), DTypeBytes(rows.dtype(), rows.dim(1))}, rows.device());
}

}  // namespace

absl::Status Wire::GatherColumns(Site site, ConstTensorView part, TensorView whole,
                                 Stream& stream) {
  const int p = tp_->size();
  const int rank = tp_->rank();
  const int64_t n = part.dim(0);
  TW_CHECK_EQ(whole.dim(0), n);
  TW_CHECK_EQ(whole.dim(1), p * part.dim(1));
  TW_CHECK(whole.contiguous() && whole.dtype() == part.dtype());
  MessageKey key = {.site = site,
                    .codec = RowCodec(),
                    .sender = rank,
                    .num_rows = n,
                    .row_bytes = DTypeBytes(part.dtype(), part.dim(1))};
  const int64_t bytes = key.message_bytes();
  Recording recording(ledger_, tp_, site, /*logical_bytes=*/0);
  if (n == 0) return recording.Done(absl::OkStatus());
  if (whole.device().kind == DeviceKind::kCuda) {
    // Its links check what they carry: there are no messages but the rows.
    const auto run = [&]() -> absl::Status {
      const TensorView to = AsBytes(whole), from = AsBytes(part);
      const int64_t size = from.num_elements(), width = from.dim(1);
      TW_ASSIGN_OR_RETURN(const TensorView all, Bytes(incoming_, p * size, whole.device()));
      recording.InTransfer();
      TW_RETURN_IF_ERROR(tp_->AllGather(from, all, stream));
      recording.InCodec();
      for (int r = 0; r < p; ++r) {
        const ConstTensorView block(Part(all, r * size, size).raw(), DType::kU8, {n, width},
                                    whole.device());
        TW_RETURN_IF_ERROR(Copy(block, to.Columns(r * width, width), stream));
      }
      return absl::OkStatus();
    };
    return recording.Done(run());
  }
  recording.AddMetadata((p - 1) * MessageKey::kCheckBytes);
  const auto run = [&]() -> absl::Status {
    TW_ASSIGN_OR_RETURN(const TensorView all, Bytes(incoming_, p * bytes, whole.device()));
    const TensorView own = Part(all, rank * bytes, bytes);
    TW_RETURN_IF_ERROR(EncodeRows(key.codec, part, RowsOf(key, own), stream));
    SealMessage(key, own);
    recording.InTransfer();
    TW_RETURN_IF_ERROR(tp_->AllGather(own, all, stream));
    recording.InCodec();
    auto* const to = static_cast<std::byte*>(whole.mutable_raw());
    for (key.sender = 0; key.sender < p; ++key.sender) {
      const TensorView message = Part(all, key.sender * bytes, bytes);
      TW_RETURN_IF_ERROR(CheckMessage(key, message));
      PlaceColumns(RowsOf(key, message), to + key.sender * key.row_bytes, p * key.row_bytes);
    }
    return absl::OkStatus();
  };
  return recording.Done(run());
}

absl::Status Wire::CollectRows(Site site, ConstTensorView part, TensorView rows, Stream& stream) {
  const int p = tp_->size();
  const int rank = tp_->rank();
  const int64_t n = rows.dim(0);
  TW_CHECK_EQ(part.dim(0), n);
  TW_CHECK_EQ(part.dim(1), BlockOf(rows.dim(1), rank).size());
  TW_CHECK(rows.contiguous() && rows.dtype() == part.dtype());
  const Range own = BlockOf(n, rank);
  const auto key_of = [&](int sender, Range to) {
    return MessageKey{.site = site,
                      .codec = RowCodec(),
                      .sender = sender,
                      .num_rows = to.size(),
                      .row_bytes = DTypeBytes(rows.dtype(), BlockOf(rows.dim(1), sender).size())};
  };
  Recording recording(ledger_, tp_, site, RingAllReduceBytes(rows.num_elements()));
  if (rows.device().kind == DeviceKind::kCuda) {
    const auto run = [&]() -> absl::Status {
      const TensorView from = AsBytes(part);
      const TensorView to = AsBytes(rows).Rows(own.begin, own.size());
      TW_ASSIGN_OR_RETURN(const TensorView received,
                          Bytes(incoming_, to.num_elements(), rows.device()));
      std::vector<ConstTensorView> out(p);
      std::vector<TensorView> in(p);
      int64_t end = 0;
      for (int r = 0; r < p; ++r) {
        const MessageKey wanted = key_of(r, own);
        if (r == rank) continue;
        if (const Range block = BlockOf(n, r); block.size() > 0) {
          out[r] = from.Rows(block.begin, block.size());
        }
        if (wanted.rows_bytes() == 0) continue;
        in[r] = RowsOf(wanted, Part(received, end, wanted.rows_bytes()));
        end += wanted.rows_bytes();
      }
      recording.InTransfer();
      TW_RETURN_IF_ERROR(tp_->Exchange(out, in, stream));
      recording.InCodec();
      int64_t column = 0;
      for (int r = 0; r < p && own.size() > 0; ++r) {
        const int64_t width = key_of(r, own).row_bytes;
        const TensorView block = r == rank ? from.Rows(own.begin, own.size()) : in[r];
        if (width > 0) TW_RETURN_IF_ERROR(Copy(block, to.Columns(column, width), stream));
        column += width;
      }
      return absl::OkStatus();
    };
    return recording.Done(run());
  }
  const auto run = [&]() -> absl::Status {
    const int64_t sent_bytes = key_of(rank, {0, n}).message_bytes() + p * MessageKey::kCheckBytes;
    TW_ASSIGN_OR_RETURN(const TensorView sent, Bytes(outgoing_, sent_bytes, rows.device()));
    const int64_t room = own.size() * DTypeBytes(rows.dtype(), rows.dim(1));
    TW_ASSIGN_OR_RETURN(const TensorView received,
                        Bytes(incoming_, room + p * MessageKey::kCheckBytes, rows.device()));
    std::vector<ConstTensorView> out(p);
    std::vector<TensorView> in(p);
    int64_t sent_end = 0;
    int64_t received_end = 0;
    for (int r = 0; r < p; ++r) {
      const Range block = BlockOf(n, r);
      const MessageKey key = key_of(rank, block);
      if (r != rank && key.num_rows > 0) {
        const TensorView message = Part(sent, sent_end, key.message_bytes());
        sent_end += key.message_bytes();
        TW_RETURN_IF_ERROR(EncodeRows(key.codec, part.Rows(block.begin, block.size()),
                                      RowsOf(key, message), stream));
        SealMessage(key, message);
        recording.AddMetadata(MessageKey::kCheckBytes);
        out[r] = message;
      }
      const MessageKey wanted = key_of(r, own);
      if (r != rank && wanted.num_rows > 0) {
        in[r] = Part(received, received_end, wanted.message_bytes());
        received_end += wanted.message_bytes();
      }
    }
    recording.InTransfer();
    TW_RETURN_IF_ERROR(tp_->Exchange(out, in, stream));
    recording.InCodec();
    const int64_t row_bytes = DTypeBytes(rows.dtype(), rows.dim(1));
    auto* to = static_cast<std::byte*>(rows.mutable_raw()) + own.begin * row_bytes;
    for (int r = 0; r < p && own.size() > 0; ++r) {
      const MessageKey key = key_of(r, own);
      const ConstTensorView mine = part.Rows(own.begin, own.size());
      const ConstTensorView block =
          r == rank ? ConstTensorView(mine.raw(), DType::kU8, {own.size(), key.row_bytes})
                    : RowsOf(key, in[r]);
      if (r != rank) TW_RETURN_IF_ERROR(CheckMessage(key, in[r]));
      PlaceColumns(block, to, row_bytes);
      to += key.row_bytes;
    }
    return absl::OkStatus();
  };
  return recording.Done(run());
}

}  // namespace thinwire
