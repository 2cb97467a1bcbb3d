// Bounded waits for the stream of a rank on a GPU.
#pragma once

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/core/device.h"
#include "kernels/core/event.h"
#include "kernels/core/stream.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// Waits for streams whose work includes calls of several communicators: kernels of a collective
// spin until all ranks have come, for ever where one does not come. Thread-compatible; movable.
class StreamWatch {
 public:
  // `communicators` are borrowed: those whose calls are enqueued on the streams. A wait ends after
  // `timeout`.
  static absl::StatusOr<StreamWatch> Create(Device device, std::vector<Communicator*> communicators,
                                            absl::Duration timeout);

  // Returns when the stream's work is done and no communicator has failed. Otherwise the reason: a
  // fault of a kernel, a rank that is lost, or DeadlineExceeded. Then all communicators have been
  // aborted with it, so that the other ranks hear of it and no kernel of theirs goes on spinning;
  // the stream is given a moment to end.
  absl::Status Wait(Stream& stream);
  // The same for the work before an event, which has been recorded.
  absl::Status WaitFor(const Event& event);

  void set_timeout(absl::Duration timeout) { timeout_ = timeout; }

 private:
  StreamWatch(Device device, Event event, std::vector<Communicator*> communicators,
              absl::Duration timeout)
      : device_(device),
        event_(std::move(event)),
        communicators_(std::move(communicators)),
        timeout_(timeout) {}

  absl::Status CommunicatorsStatus() const;
  // Gives what comes before `event` a moment to end.
  absl::Status Abort(const absl::Status& why, const Event& event);

  Device device_;
  Event event_;
  std::vector<Communicator*> communicators_;
  absl::Duration timeout_;
};

}  // namespace thinwire
