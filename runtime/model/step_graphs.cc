#include "runtime/model/step_graphs.h"

#include <algorithm>
#include <utility>

#include "kernels/core/status_macros.h"

namespace thinwire {

absl::StatusOr<StepGraphs::Memory> StepGraphs::MemoryOf(const Wire& wire, Stream& stream) {
  TW_ASSIGN_OR_RETURN(const std::byte* const scratch, stream.Scratch(0));
  return Memory{scratch, wire.num_allocations()};
}

absl::Status StepGraphs::Run(const StepSequences::Layout& layout,
                             absl::FunctionRef<absl::Status(Residual&)> enqueue, Residual& residual,
                             Wire& wire, Stream& stream) {
  TW_ASSIGN_OR_RETURN(const Memory before, MemoryOf(wire, stream));
  const auto found = std::find_if(known_.begin(), known_.end(),
                                  [&](const Known& known) { return known.layout == layout; });
  if (found == known_.end() || found->memory != before) {
    if (found != known_.end()) known_.erase(found);
    if (known_.size() >= kMostGraphs) known_.pop_back();
    TW_RETURN_IF_ERROR(enqueue(residual));
    TW_ASSIGN_OR_RETURN(const Memory after, MemoryOf(wire, stream));
    known_.push_front({.layout = layout, .memory = after});
    return absl::OkStatus();
  }
  known_.splice(known_.begin(), known_, found);
  Known& known = known_.front();
  if (!known.graph.has_value()) {
    known.residual = residual;
    const Ledger ledger = wire.ledger();
    TW_ASSIGN_OR_RETURN(known.graph,
                        Graph::Capture([&] { return enqueue(known.residual); }, stream));
    known.sent = wire.ledger().BytesSince(ledger);
  } else {
    wire.RecordAgain(known.sent);
  }
  residual = known.residual;
  return known.graph->Launch(stream);
}

}  // namespace thinwire
