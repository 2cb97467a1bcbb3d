#include "runtime/engine/kv_hand_off.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/engine/byte_stream.h"

namespace thinwire {
namespace {

bool Holds(Range range, int64_t index) { return range.begin <= index && index < range.end; }

Range Overlap(Range a, Range b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

}  // namespace

absl::StatusOr<std::vector<KvTransfer>> PlanKvTransfers(const DecoderShape& shape,
                                                        const RankLayout& layout) {
  const Mesh& sources = layout.mesh(0);
  const Mesh& targets = layout.mesh(1);
  std::vector<ShardPlan> source_plans;
  for (int rank = 0; rank < sources.world_size(); ++rank) {
    TW_ASSIGN_OR_RETURN(ShardPlan plan, ShardPlan::Create(shape, sources, rank));
    source_plans.push_back(std::move(plan));
  }
  std::vector<KvTransfer> transfers;
  for (int target = 0; target < targets.world_size(); ++target) {
    TW_ASSIGN_OR_RETURN(const ShardPlan plan, ShardPlan::Create(shape, targets, target));
    for (int stage = 0; stage < sources.pp_size; ++stage) {
      const Range layers = Overlap(source_plans[sources.RankOf(stage, 0)].layers(), plan.layers());
      if (layers.size() == 0) continue;
      for (int64_t head = plan.kv_heads().begin; head < plan.kv_heads().end; ++head) {
        std::vector<int> holders;
        for (int tp = 0; tp < sources.tp_size; ++tp) {
          const int rank = sources.RankOf(stage, tp);
          if (Holds(source_plans[rank].kv_heads(), head)) holders.push_back(rank);
        }
        const int from = layout.FirstRank(0) + holders[plan.tp_rank() % holders.size()];
        const int to = layout.FirstRank(1) + target;
        if (!transfers.empty() && transfers.back().from == from && transfers.back().to == to &&
            transfers.back().layers == layers && transfers.back().kv_heads.end == head) {
          ++transfers.back().kv_heads.end;
        } else {
          transfers.push_back({from, to, layers, {head, head + 1}});
        }
      }
    }
  }
  return transfers;
}

absl::Status CheckRowsAlike(const KvCacheShape& cache, Range layers, int64_t num_layers,
                            Communicator& job, Stream& host) {
  // Of each layer's K and V: does any rank have rows in planes, does any have others.
  constexpr int64_t kKinds = 4;
  std::vector<int64_t> found(kKinds * num_layers, 0);
  for (int64_t layer = layers.begin; layer < layers.end && !cache.in_planes.empty(); ++layer) {
    const auto [k, v] = cache.in_planes[layer - layers.begin];
    found[kKinds * layer + (k ? 0 : 1)] = 1;
    found[kKinds * layer + (v ? 2 : 3)] = 1;
  }
  TW_RETURN_IF_ERROR(job.AllReduce(TensorView(found.data(), DType::kI64, {kKinds * num_layers}),
                                   ReduceOp::kMax, host));
  for (int64_t i = 0; i < kKinds * num_layers; i += 2) {
    if (found[i] == 0 || found[i + 1] == 0) continue;
    return absl::UnimplementedError(absl::StrCat(
        "layer ", i / kKinds, ": codes of ", i % kKinds == 0 ? "K" : "V",
        " have mixed widths on some ranks and one width on others, whose rows a GPU keeps in "
        "another order; expected groups cut alike, or --device cpu"));
  }
  return absl::OkStatus();
}

KvHandOff::KvHandOff(absl::Span<const KvTransfer> transfers, const ShardPlan& plan,
                     PagedKvCache* cache, Communicator* job, Ledger* ledger, Stream* stream)
    : layers_(plan.layers()),
      kv_heads_(plan.kv_heads()),
      cache_(cache),
      wire_(job, job, WireOptions(), ledger),
      stream_(stream),
      host_stream_(Stream::Cpu(&stream->pool())) {
  for (const KvTransfer& transfer : transfers) {
    if (transfer.from == job->rank()) outgoing_.push_back(transfer);
    if (transfer.to == job->rank()) incoming_.push_back(transfer);
  }
}

KvPart KvHandOff::LocalPart(const KvTransfer& transfer) const {
  const auto local = [](Range range, Range held) {
    return Range{range.begin - held.begin, range.end - held.begin};
  };
  return {local(transfer.layers, layers_), local(transfer.kv_heads, kv_heads_)};
}

Wire::Block KvHandOff::BlockOf(int64_t id, const KvTransfer& transfer, const KvPlace& place) const {
  // Small numbers all of them: few bytes beside those of short prompts.
  ByteWriter head;
  for (const int64_t value : {id, place.num_tokens, transfer.layers.begin, transfer.layers.end,
                              transfer.kv_heads.begin, transfer.kv_heads.end}) {
    head.Put(static_cast<uint32_t>(value));
  }
  const KvPart part = LocalPart(transfer);
  return {.site = Site::kKvHandOff,
          .head = head.Take(),
          .payload_bytes = KvPartBytes(cache_->shape(), part, place.num_tokens),
          .logical_bytes = KvPartFp16Bytes(cache_->shape(), part, place.num_tokens)};
}

absl::Status KvHandOff::Send(int64_t id, const KvPlace& place) {
  for (const KvTransfer& transfer : outgoing_) {
    const auto write = [&](TensorView payload) {
      return ReadKvPart(*cache_, LocalPart(transfer), place, payload, *stream_);
    };
    TW_RETURN_IF_ERROR(
        wire_.SendBlock(BlockOf(id, transfer, place), write, transfer.to, host_stream_));
  }
  return absl::OkStatus();
}

absl::Status KvHandOff::Receive(int64_t id, const KvPlace& place) {
  for (const KvTransfer& transfer : incoming_) {
    const auto read = [&](ConstTensorView payload) {
      return WriteKvPart(*cache_, LocalPart(transfer), place, payload, *stream_);
    };
    TW_RETURN_IF_ERROR(
        wire_.RecvBlock(BlockOf(id, transfer, place), read, transfer.from, host_stream_));
  }
  return absl::OkStatus();
}

}  // namespace thinwire
