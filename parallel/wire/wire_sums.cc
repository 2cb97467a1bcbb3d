// Wire's sums over the tensor-parallel group.
#include <algorithm>
#include <vector>

#include "absl/status/status.h"
#include "kernels/convert/convert.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "parallel/wire/peer_codes.h"
#include "parallel/wire/peer_sum_norm.h"
#include "parallel/wire/recording.h"
#include "parallel/wire/wire.h"

namespace thinwire {
namespace {

using Kind = WireStrategy::Kind;

}  // namespace

// All chunks but its own while reducing, then its own to all others (as the sum over ranks: 2 (p-1)
// n elements).
int64_t Wire::RingAllReduceBytes(int64_t n) const {
  const int64_t chunk = BlockOf(n, tp_->rank()).size();
  return 2 * ((n - chunk) + (tp_->size() - 1) * chunk);
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
    case Kind::kExact:
      break;
  }
  return absl::InternalError("a sum over ranks, which the wire's strategy does not have");
}

PeerMemory* Wire::PeersForNorm(const NormArgs& norm) {
  if constexpr (kHasCuda) {
    if (tp_->size() == 1 || norm.x.device().kind != DeviceKind::kCuda) return nullptr;
    const Kind kind = StrategyFor(norm.x.dim(0)).kind;
    const bool whole = kind == Kind::kNative || kind == Kind::kFp16;
    if (!whole || !(sends_whole_values() || norm.x.dtype() == DType::kF16)) return nullptr;
    const absl::StatusOr<PeerMemory*> peers = tp_->Peers();
    if (peers.ok() && PeersSumAndNorm(**peers, norm)) return *peers;
  }
  return nullptr;
}

absl::Status Wire::ReduceAndNorm(Site site, TensorView parts, NormArgs norm, Stream& stream) {
  TW_CHECK(keeps_all_rows(parts.dim(0)));
  norm.delta = parts;
  if constexpr (kHasCuda) {
    if (PeerMemory* const peers = PeersForNorm(norm)) {
      Recording recording(ledger_, tp_, site, RingAllReduceBytes(parts.num_elements()));
      recording.InTransfer();
      absl::Status status = tp_->status();
      if (status.ok()) status = SumAndNormThroughPeers(*peers, norm, stream);
      return recording.Done(status);
    }
  }
  TW_RETURN_IF_ERROR(Reduce(site, parts, stream));
  return Norm(norm, stream);
}

absl::Status Wire::AllReduce(Site site, TensorView inout, Stream& stream) {
  if (tp_->size() == 1) return absl::OkStatus();
  // The communicator uses what peer memory there is; without, it goes its own way.
  if (inout.device().kind == DeviceKind::kCuda) tp_->Peers().IgnoreError();
  Recording recording(ledger_, tp_, site, RingAllReduceBytes(inout.num_elements()));
  const auto run = [&]() -> absl::Status {
    if (sends_whole_values() || inout.dtype() == DType::kF16) {
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
                    .row_bytes = codec.RowBytes(inout.dim(1), inout.dtype()),
                    .on_gpu = inout.device().kind == DeviceKind::kCuda};
  PeerMemory* const peers = PeersFor(codec, inout);
  Recording recording(ledger_, tp_, site, RingAllReduceBytes(inout.num_elements()));
  if constexpr (kHasCuda) {
    if (peers != nullptr) {
      recording.AddMetadata((p - 1) * n * codec.RowMetadataBytes(inout.dim(1)));
      return recording.Done(ExchangeThroughPeers(*peers, PeerExchange::kSumAll, codec, inout,
                                                 BlockOffsets(n), stream));
    }
  }
  const int64_t bytes = key.message_bytes();
  recording.AddMetadata((p - 1) * (n * codec.RowMetadataBytes(inout.dim(1)) + key.extra_bytes()));
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
  PeerMemory* const peers = PeersFor(codec, inout);
  Recording recording(ledger_, tp_, site, RingAllReduceBytes(inout.num_elements()));
  if constexpr (kHasCuda) {
    if (peers != nullptr) {
      recording.AddMetadata((n - own.size()) * codec.RowMetadataBytes(inout.dim(1)));
      return recording.Done(ExchangeThroughPeers(*peers, PeerExchange::kSumToOwners, codec, inout,
                                                 BlockOffsets(n), stream));
    }
  }
  // What `sender` sends to the owner of `rows`.
  const auto key_of = [&](int sender, Range rows) {
    return MessageKey{.site = site,
                      .codec = codec,
                      .sender = sender,
                      .num_rows = rows.size(),
                      .row_bytes = row_bytes,
                      .on_gpu = inout.device().kind == DeviceKind::kCuda};
  };
  const auto run = [&]() -> absl::Status {
    TW_ASSIGN_OR_RETURN(const TensorView sent,
                        Bytes(outgoing_, n * row_bytes + p * MessageKey::kPadding, inout.device()));
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
                            key.extra_bytes());
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

absl::Status Wire::AllReduceMax(Site site, TensorView inout, Stream& stream) {
  if (tp_->size() == 1) return absl::OkStatus();
  const int64_t sent_before = tp_->bytes_sent();
  Recording recording(ledger_, tp_, site, /*logical_bytes=*/0);
  recording.InTransfer();
  const absl::Status status = tp_->AllReduce(inout, ReduceOp::kMax, stream);
  recording.AddMetadata(tp_->bytes_sent() - sent_before);
  return recording.Done(status);
}

}  // namespace thinwire
