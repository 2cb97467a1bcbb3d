// Work for a GPU that is enqueued once and run often, and timed. Private to this folder.
#pragma once

#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// A CUDA graph with events before and after. Owned and move-only.
class CapturedCalls {
 public:
  // Unimplemented in builds without CUDA. What `enqueue` enqueues on `stream`, a CUDA stream, which
  // neither runs nor waits meanwhile.
  static absl::StatusOr<CapturedCalls> Capture(absl::FunctionRef<absl::Status()> enqueue,
                                               Stream& stream);
  CapturedCalls(CapturedCalls&& other) noexcept;
  CapturedCalls& operator=(CapturedCalls&& other) noexcept;
  ~CapturedCalls();

  // Runs it once, waits with the communicator's bound, and returns microseconds from begin to end
  // on the GPU.
  absl::StatusOr<double> Run(Communicator& waits, Stream& stream);

 private:
  explicit CapturedCalls(Device device) : device_(device) {}

  Device device_;
  void* begin_ = nullptr;  // cudaEvent_t
  void* end_ = nullptr;
  void* graph_ = nullptr;  // cudaGraphExec_t
};

}  // namespace thinwire
