// A point in a stream's work: to wait for, or to measure the time since another.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/core/device.h"
#include "kernels/core/stream.h"

namespace thinwire {

// Owned and move-only; of one device. On the CPU, where operators finish before they return, it
// keeps the time and waits for nothing.
class Event {
 public:
  // kTimed is what MillisecondsSince needs; an event for ordering alone is cheaper.
  enum class Kind { kOrder, kTimed };

  // Unimplemented for a GPU in a build without CUDA.
  static absl::StatusOr<Event> Create(Device device, Kind kind);

  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  // Moves the event to the end of the stream's work; same device.
  absl::Status Record(Stream& stream);

  // What is enqueued on `stream` from now on runs after the event as last recorded; at once if it
  // never was. The stream may be of another GPU.
  absl::Status OrderBefore(Stream& stream) const;

  // Blocks the calling thread until the event as last recorded has happened.
  absl::Status Synchronize() const;

  // Whether it has happened, without blocking.
  absl::StatusOr<bool> Happened() const;

  // Milliseconds from `start` to this: both timed, recorded, and happened.
  absl::StatusOr<double> MillisecondsSince(const Event& start) const;

 private:
  Event(Device device, void* native) : device_(device), native_(native) {}

  Device device_;
  void* native_ = nullptr;     // cudaEvent_t
  double host_seconds_ = 0.0;  // when recorded, on the CPU
};

}  // namespace thinwire
