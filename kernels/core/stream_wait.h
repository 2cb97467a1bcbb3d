// How a stream is waited for where the driver's own wait, which has no bound, will not do.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "kernels/core/device.h"
#include "kernels/core/stream.h"

namespace thinwire {

// Kept with a stream: `stream.State<StreamWait>().wait = ...` replaces what Stream::Synchronize
// does from then on, for all that wait for the stream. What it refers to must outlive the stream,
// or be taken out again.
class StreamWait : public StreamState {
 public:
  explicit StreamWait(Device /*device*/) {}

  // Returns when all work on the stream is done, or why it will not be. Null: the driver's wait.
  std::function<absl::Status(Stream&)> wait;
};

}  // namespace thinwire
