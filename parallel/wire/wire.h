// What carries activations between ranks: collectives in a chosen encoding, counted by the ledger.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "parallel/comm/communicator.h"
#include "parallel/wire/ledger.h"

namespace thinwire {

// How partial sums and residuals are encoded between ranks.
enum class WireFormat {
  kNative,  // the activations' own dtype: nothing is lost
  kFp16,    // rounded to fp16; sums in fp32
};

// Parses --wire. "auto" picks from what this build encodes: native today. Names that are part of
// the command line but whose codec this build lacks (one-shot-qB, token-owner-qB, exact) are
// Unimplemented; anything else is InvalidArgument. Both list what is accepted.
absl::StatusOr<WireFormat> ParseWireFormat(absl::string_view name);
absl::string_view WireFormatName(WireFormat format);

// Borrows the communicators and the ledger, which must outlive it. Thread-compatible. Every call is
// recorded under its site. Errors carry the site's name.
class Wire {
 public:
  // `tp`: the tensor-parallel group. `world`: all ranks, for hops between stages and control
  // messages.
  Wire(Communicator* tp, Communicator* world, WireFormat format, Ledger* ledger);

  // inout: [n] fp32 | fp16 | bf16, partial sums; becomes their sum on every rank of the group.
  absl::Status AllReduce(Site site, TensorView inout, Stream& stream);

  // inout: [n] fp32, becomes the largest over the group. Counted as metadata: gains of codes.
  absl::Status AllReduceMax(Site site, TensorView inout, Stream& stream);

  // A residual of `num_tokens` rows, to a rank of another stage.
  absl::Status SendHop(ConstTensorView residual, int peer, Stream& stream);
  absl::Status RecvHop(TensorView residual, int peer, Stream& stream);

  // Rows of any dtype as they are, within the tensor-parallel group.
  absl::Status SendInGroup(Site site, ConstTensorView in, int tp_peer, Stream& stream);
  absl::Status RecvInGroup(Site site, TensorView out, int tp_peer, Stream& stream);

  // A byte string of any length: 8 bytes of length, then the bytes.
  absl::Status SendBytes(absl::string_view bytes, int peer, Stream& stream);
  absl::StatusOr<std::string> RecvBytes(int peer, Stream& stream);

  Communicator& tp() { return *tp_; }
  Communicator& world() { return *world_; }
  const Ledger& ledger() const { return *ledger_; }

 private:
  class Recording;

  // A view of fp16 scratch in the shape of `like`; invalidated by the next call.
  absl::StatusOr<TensorView> Fp16Scratch(const ConstTensorView& like);

  Communicator* tp_;
  Communicator* world_;
  WireFormat format_;
  Ledger* ledger_;
  Buffer scratch_;
};

}  // namespace thinwire
