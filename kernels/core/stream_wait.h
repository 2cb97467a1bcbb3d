// How a stream is waited for where the driver's own wait, which has no bound, will not do.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "kernels/core/device.h"
#include "kernels/core/event.h"
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
  // The same for the work before an event of the stream.
  std::function<absl::Status(const Event&)> wait_for_event;
};

// Returns when `event`, recorded on `stream`, has happened, or why it will not: as the stream's
// StreamWait says, or else the driver.
inline absl::Status Await(const Event& event, Stream& stream) {
  const auto& wait = stream.State<StreamWait>().wait_for_event;
  return wait != nullptr ? wait(event) : event.Synchronize();
}

}  // namespace thinwire
