#include "kernels/core/buffer.h"

#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/backend.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr int64_t kAlignment = 64;  // one cache line; the widest vector register

}  // namespace

absl::StatusOr<Buffer> Buffer::Allocate(int64_t size_bytes, Device device) {
  TW_CHECK_GE(size_bytes, 0);
  Buffer buffer;
  buffer.device_ = device;
  if (size_bytes == 0) return buffer;
  if (device.kind == DeviceKind::kCuda) {
    TW_ASSIGN_OR_RETURN(buffer.data_, backend::Allocate(size_bytes, device));
  } else {
    const int64_t rounded = (size_bytes + kAlignment - 1) / kAlignment * kAlignment;
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (buffer.data_ == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot allocate ", size_bytes, " bytes on ", DeviceName(device)));
    }
  }
  buffer.size_bytes_ = size_bytes;
  return buffer;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      device_(other.device_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(device_, other.device_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (device_.kind == DeviceKind::kCuda) {
    backend::Free(data_, device_);
  } else {
    std::free(data_);
  }
}

}  // namespace thinwire
