// Work for a GPU that is enqueued once and run often, and timed. Private to this folder.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/event.h"
#include "kernels/core/graph.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// A graph with events before and after. Move-only.
class CapturedCalls {
 public:
  // As Graph::Capture.
  static absl::StatusOr<CapturedCalls> Capture(absl::FunctionRef<absl::Status()> enqueue,
                                               Stream& stream);

  // Runs it once, waits with the communicator's bound, and returns microseconds from begin to end
  // on the GPU.
  absl::StatusOr<double> Run(Communicator& waits, Stream& stream);

 private:
  CapturedCalls(Graph graph, Event begin, Event end);

  Graph graph_;
  Event begin_;
  Event end_;
};

}  // namespace thinwire
