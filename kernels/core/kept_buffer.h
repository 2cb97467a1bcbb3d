// Memory that an operator keeps with the stream from call to call, beside the stream's scratch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/core/buffer.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"

namespace thinwire {

// One for each `Owner`, any type: stream.State<KeptBuffer<Owner>>().
template <typename Owner>
class KeptBuffer : public StreamState {
 public:
  explicit KeptBuffer(Device device) : device_(device) {}

  // At least `bytes`, unwritten. Waits for the stream where it has to grow. ResourceExhausted as
  // Buffer::Allocate.
  absl::StatusOr<std::byte*> Get(int64_t bytes, Stream& stream) {
    if (buffer_.size_bytes() < bytes) {
      TW_RETURN_IF_ERROR(stream.Synchronize());
      buffer_ = Buffer();
      TW_ASSIGN_OR_RETURN(buffer_, Buffer::Allocate(bytes, device_));
    }
    return buffer_.data();
  }

 private:
  Device device_;
  Buffer buffer_;
};

}  // namespace thinwire
