#include "kernels/core/stream.h"

#include <algorithm>
#include <utility>

#include "kernels/core/backend.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream_wait.h"

namespace thinwire {

Stream::Stream(Device device, ThreadPool* pool, void* native)
    : device_(device), pool_(pool), native_(native) {
  TW_CHECK(pool != nullptr);
}

Stream Stream::Cpu(ThreadPool* pool) { return Stream(Device::Cpu(), pool, nullptr); }

absl::StatusOr<Stream> Stream::Cuda(Device device, ThreadPool* pool) {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device));
  TW_ASSIGN_OR_RETURN(void* native, backend::CreateStream(device));
  return Stream(device, pool, native);
}

Stream::Stream(Stream&& other) noexcept
    : device_(other.device_),
      pool_(other.pool_),
      native_(std::exchange(other.native_, nullptr)),
      scratch_(std::move(other.scratch_)),
      states_(std::move(other.states_)) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(pool_, other.pool_);
  std::swap(native_, other.native_);
  std::swap(scratch_, other.scratch_);
  std::swap(states_, other.states_);
  return *this;
}

Stream::~Stream() {
  if (native_ == nullptr) return;
  // Work in flight may still use what the members free.
  (void)Synchronize();
  states_.clear();
  backend::DestroyStream(native_, device_);
}

absl::Status Stream::Synchronize() {
  if (device_.kind == DeviceKind::kCpu) return absl::OkStatus();
  if (const auto& wait = State<StreamWait>().wait) return wait(*this);
  return backend::SynchronizeStream(native_, device_);
}

absl::StatusOr<std::byte*> Stream::Scratch(int64_t bytes) {
  if (scratch_.size_bytes() < bytes) {
    // Work that still reads the old scratch must end before it is freed.
    TW_RETURN_IF_ERROR(Synchronize());
    const int64_t grown = std::max(bytes, scratch_.size_bytes() * 3 / 2);
    scratch_ = Buffer();
    TW_ASSIGN_OR_RETURN(scratch_, Buffer::Allocate(grown, device_));
  }
  return scratch_.data();
}

}  // namespace thinwire
