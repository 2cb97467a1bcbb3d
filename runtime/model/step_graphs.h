// Steps of which only the numbers change, captured as CUDA graphs: one launch instead of some
// twenty a layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "kernels/attention/step_sequences.h"
#include "kernels/core/graph.h"
#include "kernels/core/stream.h"
#include "parallel/wire/ledger.h"
#include "parallel/wire/wire.h"
#include "runtime/model/layer_runner.h"

namespace thinwire {

// The layers of steps, by what the arguments of their kernels follow from. Move-only,
// thread-compatible.
class StepGraphs {
 public:
  // As many, of the layouts that came last, are kept.
  static constexpr size_t kMostGraphs = 32;

  // Does what `enqueue` does: enqueues the layers of a step of this layout on a GPU's stream, and
  // leaves in the residual what comes of it. The first step of a layout is enqueued, which gives
  // operators the memory they need; the second captured; later ones replay the graph, unless
  // memory that a graph uses has been given back since. The ledger of the wire counts bytes and
  // calls of a replay as of the capture, and no time.
  absl::Status Run(const StepSequences::Layout& layout,
                   absl::FunctionRef<absl::Status(Residual&)> enqueue, Residual& residual,
                   Wire& wire, Stream& stream);

 private:
  // What else graphs depend on: memory that grows, and moves then.
  struct Memory {
    const std::byte* scratch = nullptr;
    int64_t wire_allocations = 0;

    bool operator==(const Memory& other) const = default;
  };
  static absl::StatusOr<Memory> MemoryOf(const Wire& wire, Stream& stream);

  struct Known {
    StepSequences::Layout layout;
    Memory memory;
    std::optional<Graph> graph;
    Residual residual;  // after the layers
    Ledger sent;
  };

  std::list<Known> known_;  // the last used first
};

}  // namespace thinwire
