#include "kernels/core/event.h"

#include <chrono>
#include <utility>

#include "kernels/core/backend.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::StatusOr<Event> Event::Create(Device device, Kind kind) {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device));
  if (device.kind == DeviceKind::kCpu) return Event(device, nullptr);
  TW_ASSIGN_OR_RETURN(void* native, backend::CreateEvent(kind == Kind::kTimed, device));
  return Event(device, native);
}

Event::Event(Event&& other) noexcept
    : device_(other.device_),
      native_(std::exchange(other.native_, nullptr)),
      host_seconds_(other.host_seconds_) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(native_, other.native_);
  std::swap(host_seconds_, other.host_seconds_);
  return *this;
}

Event::~Event() {
  if (native_ != nullptr) backend::DestroyEvent(native_, device_);
}

absl::Status Event::Record(Stream& stream) {
  TW_CHECK(stream.device() == device_);
  if (device_.kind == DeviceKind::kCuda) {
    return backend::RecordEvent(native_, stream.native(), device_);
  }
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  host_seconds_ = std::chrono::duration<double>(now).count();
  return absl::OkStatus();
}

absl::Status Event::OrderBefore(Stream& stream) const {
  if (device_.kind == DeviceKind::kCpu) return absl::OkStatus();
  if (stream.device().kind == DeviceKind::kCpu) return Synchronize();
  return backend::StreamWaitEvent(stream.native(), native_, stream.device());
}

absl::Status Event::Synchronize() const {
  if (device_.kind == DeviceKind::kCpu) return absl::OkStatus();
  return backend::SynchronizeEvent(native_, device_);
}

absl::StatusOr<bool> Event::Happened() const {
  if (device_.kind == DeviceKind::kCpu) return true;
  return backend::EventHappened(native_, device_);
}

absl::StatusOr<double> Event::MillisecondsSince(const Event& start) const {
  TW_CHECK(start.device_ == device_);
  if (device_.kind == DeviceKind::kCpu) return (host_seconds_ - start.host_seconds_) * 1e3;
  return backend::EventMilliseconds(start.native_, native_, device_);
}

}  // namespace thinwire
