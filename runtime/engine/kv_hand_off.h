// K and V of a sequence, from the ranks of the prefill group to those of the decode group.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/wire/wire.h"
#include "runtime/cache/kv_part.h"
#include "runtime/cache/paged_kv_cache.h"
#include "runtime/engine/rank_layout.h"

namespace thinwire {

// What one rank sends to another of every sequence that moves. Ranks are the job's, layers and KV
// heads the model's.
struct KvTransfer {
  int from = 0;
  int to = 0;
  Range layers;
  Range kv_heads;

  friend bool operator==(const KvTransfer& a, const KvTransfer& b) = default;
};

// All transfers of a split job: every rank of the decode group gets each of its layers and heads
// once. Where several ranks of the prefill group hold a head, receivers are spread over them.
absl::StatusOr<std::vector<KvTransfer>> PlanKvTransfers(const DecoderShape& shape,
                                                        const RankLayout& layout);

// One rank's side. Both groups call it for the same sequences in the same order. A sender does not
// wait for receivers; a receiver waits until the sender has come to the sequence. Borrows all that
// it is given but `transfers`, of which it takes this rank's. Thread-compatible.
class KvHandOff {
 public:
  KvHandOff(absl::Span<const KvTransfer> transfers, const ShardPlan& plan, PagedKvCache* cache,
            Communicator* job, Ledger* ledger, Stream* stream);

  // `id` names the sequence in both groups.
  absl::Status Send(int64_t id, const KvPlace& place);
  absl::Status Receive(int64_t id, const KvPlace& place);

 private:
  // The part of this rank's cache that a transfer is of.
  KvPart LocalPart(const KvTransfer& transfer) const;
  Wire::Block BlockOf(int64_t id, const KvTransfer& transfer, const KvPlace& place) const;

  std::vector<KvTransfer> outgoing_, incoming_;
  Range layers_, kv_heads_;  // of this rank
  PagedKvCache* cache_;
  Wire wire_;
  Stream* stream_;
};

}  // namespace thinwire
