// Owned memory on one device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/core/device.h"

namespace thinwire {

// A block of bytes on a device; 64-byte aligned (256 on CUDA). Move-only; freed by the destructor.
// An empty buffer has size 0 and a null pointer. On the CPU, pages are not touched before they are
// written, so a buffer costs memory only as it fills: by pages of 4 KiB or, from 4 MiB on, of 2 MiB
// where the system grants them, because decoding over a long context is up to a third faster when
// the TLB misses less.
class Buffer {
 public:
  Buffer() = default;

  // ResourceExhausted when the device has not enough memory (the message has size and device).
  static absl::StatusOr<Buffer> Allocate(int64_t size_bytes, Device device);

  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }
  Device device() const { return device_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  Device device_;
};

}  // namespace thinwire
