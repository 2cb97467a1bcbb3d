// Work for a GPU that is enqueued once and run often: a CUDA graph.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/device.h"
#include "kernels/core/stream.h"

namespace thinwire {

// Owned and move-only. Calls of kernels keep the arguments of the capture: what they point to must
// live, and stay where it is, as long as the graph runs.
class Graph {
 public:
  // What `enqueue` enqueues on `stream`, a CUDA stream, which runs none of it now. Whatever waits
  // for the stream meanwhile fails, so that `enqueue` must need no memory that it has not had
  // before. Unimplemented in a build without CUDA.
  static absl::StatusOr<Graph> Capture(absl::FunctionRef<absl::Status()> enqueue, Stream& stream);

  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();

  // Enqueues all of it, on a stream of the same GPU.
  absl::Status Launch(Stream& stream) const;

 private:
  Graph(Device device, void* native) : device_(device), native_(native) {}

  Device device_;
  void* native_ = nullptr;  // cudaGraphExec_t
};

}  // namespace thinwire
