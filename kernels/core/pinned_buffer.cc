#include "kernels/core/pinned_buffer.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/backend.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(int64_t size_bytes, Device device) {
  TW_CHECK_GE(size_bytes, 0);
  PinnedBuffer buffer;
  buffer.device_ = device;
  if (size_bytes == 0) return buffer;
  if (device.kind == DeviceKind::kCuda) {
    TW_ASSIGN_OR_RETURN(buffer.data_, backend::AllocatePinned(size_bytes, device));
  } else {
    const auto rounded = (static_cast<size_t>(size_bytes) + 63) / 64 * 64;
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(64, rounded));
    if (buffer.data_ == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot allocate ", size_bytes, " bytes on the host"));
    }
  }
  buffer.size_bytes_ = size_bytes;
  return buffer;
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      device_(other.device_) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(device_, other.device_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) return;
  if (device_.kind == DeviceKind::kCuda) {
    backend::FreePinned(data_, device_);
  } else {
    std::free(data_);
  }
}

}  // namespace thinwire
