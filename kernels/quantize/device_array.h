// Arrays of numbers in a GPU's memory for the steps of quantisation, copied from and to plain host
// memory.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/core/buffer.h"
#include "kernels/core/copy.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// Move-only. T is trivially copyable.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;

  // Uninitialised, on the stream's device. ResourceExhausted names `what` asked for the memory.
  static absl::StatusOr<DeviceArray> Allocate(int64_t size, absl::string_view what,
                                              Stream& stream) {
    absl::StatusOr<Buffer> buffer =
        Buffer::Allocate(size * static_cast<int64_t>(sizeof(T)), stream.device());
    if (!buffer.ok()) return Annotate(buffer.status(), what);
    DeviceArray array;
    array.buffer_ = *std::move(buffer);
    array.size_ = size;
    return array;
  }

  // A copy of `host`, done on return.
  static absl::StatusOr<DeviceArray> CopyOf(absl::Span<const T> host, absl::string_view what,
                                            Stream& stream) {
    TW_ASSIGN_OR_RETURN(DeviceArray array,
                        Allocate(static_cast<int64_t>(host.size()), what, stream));
    TW_RETURN_IF_ERROR(array.Upload(host, stream));
    return array;
  }

  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  int64_t size() const { return size_; }

  // From and to host memory of the array's size, done on return.
  absl::Status Upload(absl::Span<const T> host, Stream& stream) {
    TW_CHECK_EQ(static_cast<int64_t>(host.size()), size_);
    if (size_ == 0) return absl::OkStatus();
    TW_RETURN_IF_ERROR(Copy(ConstTensorView(host.data(), DType::kU8, {bytes()}),
                            TensorView(buffer_.data(), DType::kU8, {bytes()}, stream.device()),
                            stream));
    return stream.Synchronize();
  }
  absl::Status Download(absl::Span<T> host, Stream& stream) const {
    TW_CHECK_EQ(static_cast<int64_t>(host.size()), size_);
    if (size_ == 0) return absl::OkStatus();
    TW_RETURN_IF_ERROR(Copy(ConstTensorView(buffer_.data(), DType::kU8, {bytes()}, stream.device()),
                            TensorView(host.data(), DType::kU8, {bytes()}), stream));
    return stream.Synchronize();
  }

 private:
  int64_t bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  Buffer buffer_;
  int64_t size_ = 0;
};

}  // namespace thinwire
