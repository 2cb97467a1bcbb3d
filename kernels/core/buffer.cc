#include "kernels/core/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/backend.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr size_t kAlignment = 64;  // one cache line; the widest vector register
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kHugeFrom = int64_t{4} << 20;

}  // namespace

absl::StatusOr<Buffer> Buffer::Allocate(int64_t size_bytes, Device device) {
  TW_CHECK_GE(size_bytes, 0);
  Buffer buffer;
  buffer.device_ = device;
  if (size_bytes == 0) return buffer;
  if (device.kind == DeviceKind::kCuda) {
    TW_ASSIGN_OR_RETURN(buffer.data_, backend::Allocate(size_bytes, device));
  } else {
    const size_t alignment = size_bytes >= kHugeFrom ? kHugePage : kAlignment;
    const size_t rounded =
        (static_cast<size_t>(size_bytes) + alignment - 1) / alignment * alignment;
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
    if (buffer.data_ == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot allocate ", size_bytes, " bytes on ", DeviceName(device)));
    }
    // Only a wish: where it is refused, the memory serves as well. The last, partial huge page is
    // left out, so that no memory beyond the buffer becomes resident.
    if (alignment == kHugePage) {
      const size_t whole = static_cast<size_t>(size_bytes) / kHugePage * kHugePage;
      (void)madvise(buffer.data_, whole, MADV_HUGEPAGE);
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
