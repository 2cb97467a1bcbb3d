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

// Collective over the job: Unimplemented on all ranks where codes of a layer do not lie alike in
// all caches. On a GPU that may depend on the heads that a rank has (kernels/attention/kv_codes.h).
// `cache`: this rank's, whose layers are `layers` of the model's num_layers. `host`: a stream for
// host memory.
absl::Status CheckRowsAlike(const KvCacheShape& cache, Range layers, int64_t num_layers,
                            Communicator& job, Stream& host);

// One rank's side. Both groups call it for the same sequences in the same order. A sender does not
// wait for receivers; a receiver waits until the sender has come to the sequence. Messages are the
// hosts': what lies on a GPU goes through its host's memory, and no kernel waits for another group.
// Borrows all that it is given but `transfers`, of which it takes this rank's. Thread-compatible.
class KvHandOff {
 public:
  // `job` carries host memory; `stream` is the cache's.
  KvHandOff(absl::Span<const KvTransfer> transfers, const ShardPlan& plan, PagedKvCache* cache,
            Communicator* job, Ledger* ledger, Stream* stream);

  // `id` names the sequence in both groups. On a GPU they wait for the stream.
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
  Stream host_stream_;
};

}  // namespace thinwire
