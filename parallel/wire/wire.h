// What carries activations between ranks: collectives in a chosen encoding, counted by the ledger.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/buffer.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/norm/norm.h"
#include "parallel/comm/communicator.h"
#include "parallel/plan/shard_plan.h"
#include "parallel/wire/ledger.h"
#include "parallel/wire/message.h"
#include "parallel/wire/strategy.h"
#include "parallel/wire/strategy_table.h"

namespace thinwire {

// Borrows the communicators and the ledger, which must outlive it. Where the group's GPUs can write
// to each other's memory (Communicator::Peers), rows in codes go that way, with the same bits; the
// first call of Reduce, Share or AllReduce finds out, so it must not be captured in a graph.
// Thread-compatible. Every call is recorded under its site. Errors carry the site's name; a message
// that is not what it should be (message.h) is DataLoss with the sender's rank in its group.
//
// Residuals. Row t of n is owned by one rank of the tensor-parallel group: rank r owns the rows
// [n r / p, n (r + 1) / p). What the others know of it depends on the strategy: with kTokenOwner
// and kExact nothing, else all of it. OwnRows says which rows a rank keeps; Reduce makes sums for
// just these, and Share brings what was made of them to the others.
class Wire {
 public:
  // `tp`: the tensor-parallel group. `world`: all ranks, for hops between stages and control
  // messages.
  Wire(Communicator* tp, Communicator* world, const WireOptions& options, Ledger* ledger);

  // From here on the strategy of a step is what `table` picks for its rows. All ranks of the group
  // set the same.
  void UseTable(StrategyTable table) { table_ = std::move(table); }
  const StrategyTable* table() const { return table_.has_value() ? &*table_ : nullptr; }
  WireStrategy StrategyFor(int64_t num_rows) const {
    return table_.has_value() ? table_->Pick(num_rows) : options_.strategy;
  }

  // Whether every rank of the group keeps the residual of all num_rows rows of a step, and not just
  // of its own.
  bool keeps_all_rows(int64_t num_rows) const {
    if (tp_->size() == 1) return true;
    const WireStrategy::Kind kind = StrategyFor(num_rows).kind;
    return kind != WireStrategy::Kind::kTokenOwner && kind != WireStrategy::Kind::kExact;
  }
  // Whether nothing may be rounded or summed on the way: layers are cut by output features, and
  // all that a rank computes must be what any other number of ranks would have computed.
  bool exact() const { return options_.strategy.kind == WireStrategy::Kind::kExact; }
  // Of num_rows rows, those whose residual this rank keeps.
  Range OwnRows(int64_t num_rows) const;

  // inout: [n, width] fp32 | fp16 | bf16, contiguous: partial sums. Rows OwnRows(n) become the sum
  // over the group, added in fp32 in rank order (an owner: its own part, which is not encoded, then
  // the others') and rounded once; with fp16, the parts and the sum are rounded to fp16. All ranks
  // that keep a row have the same bits. The others are left unspecified. Not with kExact.
  absl::Status Reduce(Site site, TensorView inout, Stream& stream);

  // Reduce of `parts` and Norm with the sum for norm.delta, which is given empty: the same bits.
  // `parts` is left unspecified. One kernel where peer memory takes such rows. Only where ranks
  // keep all rows.
  absl::Status ReduceAndNorm(Site site, TensorView parts, NormArgs norm, Stream& stream);

  // part: [n, w], any dtype, contiguous: columns [r w, (r + 1) w) of `whole`, [n, p w], where r is
  // this rank. Brings all columns of all rows to all ranks, as they are. Several ranks.
  absl::Status GatherColumns(Site site, ConstTensorView part, TensorView whole, Stream& stream);
  // part: [n, w], contiguous: columns [h r / p, h (r + 1) / p) of `rows`, [n, h], of the same
  // dtype. Brings all columns of OwnRows(n) to this rank, as they are; other rows are left alone.
  // Several ranks that do not keep all rows.
  absl::Status CollectRows(Site site, ConstTensorView part, TensorView rows, Stream& stream);

  // What Share does to rows on their way. With kExact: nothing, whatever is asked for.
  enum class ShareAs {
    kRaw,    // nothing: codes of a site
    kFp16,   // rounds to fp16
    kCodes,  // codes of NormBits
  };

  // rows: [n, width], contiguous, of which this rank has made OwnRows(n): brings all to all ranks.
  // All ranks decode the same bytes, their own rows' too. Only where ranks do not keep all rows.
  absl::Status Share(Site site, ShareAs as, TensorView rows, Stream& stream);
  // The same for rows whose owners are cut otherwise: rank r has made [offsets[r], offsets[r + 1]).
  absl::Status Share(Site site, ShareAs as, TensorView rows, absl::Span<const int64_t> offsets,
                     Stream& stream);
  // For each of the ascending row indices below num_rows, how many there are before rank r's:
  // the offsets of Share for rows picked out of num_rows. [p + 1].
  std::vector<int64_t> OffsetsOf(absl::Span<const int32_t> picked, int64_t num_rows) const;

  // inout: [n] or [n, width] fp32 | fp16 | bf16, partial sums: becomes their sum on every rank. In
  // fp16 with all but the native strategy and kExact: for sums of which one part alone is not zero,
  // such as those of vocabulary shards.
  absl::Status AllReduce(Site site, TensorView inout, Stream& stream);

  // inout: [n] fp32, becomes the largest over the group. Counted as metadata: gains of codes.
  absl::Status AllReduceMax(Site site, TensorView inout, Stream& stream);

  // A residual, [n, width], to the stage of rank `peer`, which is this rank's counterpart there:
  // each rank sends the rows that it owns, so that every row crosses once. The receiving group then
  // shares them, where its ranks keep all rows.
  absl::Status SendHop(ConstTensorView residual, int peer, Stream& stream);
  absl::Status RecvHop(TensorView residual, int peer, Stream& stream);

  // Rows within the tensor-parallel group: fp32 | fp16 | bf16, contiguous, as they are with kNative
  // and kExact, else rounded to fp16.
  absl::Status SendInGroup(Site site, ConstTensorView in, int tp_peer, Stream& stream);
  absl::Status RecvInGroup(Site site, TensorView out, int tp_peer, Stream& stream);

  // Values of tensor-parallel rank 0 to its group, as they are, of any dtype; contiguous. Nothing
  // with one rank.
  absl::Status BroadcastInGroup(Site site, TensorView inout, Stream& stream);

  // A byte string of any length: 8 bytes of length, then the bytes, in pieces of 2 KiB.
  absl::Status SendBytes(absl::string_view bytes, int peer, Stream& stream);
  absl::StatusOr<std::string> RecvBytes(int peer, Stream& stream);

  // Bytes that lie in many places, such as KV pages, as they are: head, payload and check in one
  // message over the world. `head` says what the payload is: it travels, counted as metadata, and a
  // receiver that expects another one gets DataLoss. What is of another size is Internal.
  struct Block {
    Site site;
    std::string head;
    int64_t payload_bytes = 0;
    int64_t logical_bytes = 0;  // the payload's elements in fp16
  };
  // `write` fills the payload, [payload_bytes] uint8 on the host; `read` takes it. Their errors end
  // the call. `stream` is one for host memory.
  absl::Status SendBlock(const Block& block,
                         absl::FunctionRef<absl::Status(TensorView payload)> write, int peer,
                         Stream& stream);
  absl::Status RecvBlock(const Block& block,
                         absl::FunctionRef<absl::Status(ConstTensorView payload)> read, int peer,
                         Stream& stream);

  Communicator& tp() { return *tp_; }
  Communicator& world() { return *world_; }
  const Ledger& ledger() const { return *ledger_; }
  // Counts again what calls have sent that a graph repeats.
  void RecordAgain(const Ledger& sent) { *ledger_ += sent; }
  // How often memory of this has given way to larger memory: calls captured before must not be
  // repeated.
  int64_t num_allocations() const { return num_allocations_; }

 private:
  class Recording;
  struct Blocks;

  // What carries such rows in `codec` in one kernel, or null: the communicator does.
  PeerMemory* PeersFor(const RowCodec& codec, const ConstTensorView& rows);
  // What sums such rows and takes their norm in one kernel, or null.
  PeerMemory* PeersForNorm(const NormArgs& norm);
  absl::Status ReduceInOneShot(Site site, TensorView inout, Stream& stream);
  absl::Status ReduceToOwners(Site site, TensorView inout, Stream& stream);
  // Encodes this rank's block of `rows` and exchanges it for the others', which are decoded.
  absl::Status ShareEncoded(Site site, const RowCodec& codec, TensorView rows,
                            absl::Span<const int64_t> offsets, Recording& recording,
                            Stream& stream);
  // Room for the messages; borrows `offsets` and incoming_.
  absl::StatusOr<Blocks> BlocksFor(Site site, const RowCodec& codec, ConstTensorView rows,
                                   absl::Span<const int64_t> offsets);
  // Sends this rank's message, whose rows are there, and decodes all of them into `rows`.
  absl::Status ExchangeBlocks(const Blocks& blocks, TensorView rows, Recording& recording,
                              Stream& stream);

  // Whether sums and logits cross in their own dtype.
  bool sends_whole_values() const {
    return options_.strategy.kind == WireStrategy::Kind::kNative || exact();
  }
  Range BlockOf(int64_t num_rows, int rank) const;
  // What this rank would send of a ring all-reduce of n elements in fp16.
  int64_t RingAllReduceBytes(int64_t n) const;
  std::vector<int64_t> BlockOffsets(int64_t num_rows) const;
  RowCodec CodesFor(int64_t num_rows) const {
    return {RowCodec::Kind::kCodes, StrategyFor(num_rows).bits};
  }

  // [bytes] uint8 of `buffer`, which grows where it has to.
  absl::StatusOr<TensorView> Bytes(Buffer& buffer, int64_t bytes, Device device);
  // A view of fp16 scratch in the shape of `like`; invalidated by the next call.
  absl::StatusOr<TensorView> Fp16Scratch(const ConstTensorView& like);

  Communicator* tp_;
  Communicator* world_;
  WireOptions options_;
  std::optional<StrategyTable> table_;
  Ledger* ledger_;
  Buffer scratch_;
  Buffer outgoing_;
  Buffer incoming_;
  int64_t num_allocations_ = 0;
};

}  // namespace thinwire
