#include "runtime/engine/stream_watch.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "parallel/comm/backoff.h"

namespace thinwire {
namespace {

// For kernels that have been told to end.
constexpr absl::Duration kDrainTimeout = absl::Seconds(3);

}  // namespace

absl::StatusOr<StreamWatch> StreamWatch::Create(Device device,
                                                std::vector<Communicator*> communicators,
                                                absl::Duration timeout) {
  TW_ASSIGN_OR_RETURN(Event event, Event::Create(device, Event::Kind::kOrder));
  return StreamWatch(device, std::move(event), std::move(communicators), timeout);
}

absl::Status StreamWatch::CommunicatorsStatus() const {
  for (Communicator* const communicator : communicators_) {
    TW_RETURN_IF_ERROR(communicator->status());
  }
  return absl::OkStatus();
}

absl::Status StreamWatch::Abort(const absl::Status& why, const Event& event) {
  // Who was first may be another rank.
  const absl::Status told = CommunicatorsStatus();
  const absl::Status cause = told.ok() ? why : told;
  for (Communicator* const communicator : communicators_) {
    communicator->Abort(cause);
    (void)communicator->status();  // ends its kernels
  }
  Backoff backoff(kDrainTimeout);
  while (!event.Happened().value_or(true) && backoff.Wait()) {
  }
  return cause;
}

absl::Status StreamWatch::Wait(Stream& stream) {
  const absl::Status recorded = event_.Record(stream);
  return recorded.ok() ? WaitFor(event_) : Abort(recorded, event_);
}

absl::Status StreamWatch::WaitFor(const Event& event) {
  Backoff backoff(timeout_);
  while (true) {
    const absl::StatusOr<bool> happened = event.Happened();
    if (!happened.ok()) return Abort(happened.status(), event);
    if (*happened) break;
    if (backoff.IsCheckDue()) {
      const absl::Status status = CommunicatorsStatus();
      if (!status.ok()) return Abort(status, event);
    }
    if (!backoff.Wait()) {
      return Abort(absl::DeadlineExceededError(absl::StrCat(
                       DeviceName(device_), " has not done its work for ",
                       absl::FormatDuration(timeout_), ": a rank does not take part, or hangs")),
                   event);
    }
  }
  const absl::Status status = CommunicatorsStatus();
  return status.ok() ? status : Abort(status, event);
}

}  // namespace thinwire
