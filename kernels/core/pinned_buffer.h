// Owned host memory that a GPU copies from and to by itself.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/core/device.h"

namespace thinwire {

// Page-locked where the device is a GPU: Copy from and to it runs while the host goes on, at the
// link's full rate. Plain memory for the CPU, so that callers need not tell. At least 64-byte
// aligned, move-only, freed by the destructor; scarce: such pages cannot be swapped.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;

  // For copies with `device`. ResourceExhausted when the memory cannot be had (the message says how
  // much was wanted), Unimplemented for a GPU in a build without CUDA.
  static absl::StatusOr<PinnedBuffer> Allocate(int64_t size_bytes, Device device);

  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  Device device_;
};

}  // namespace thinwire
