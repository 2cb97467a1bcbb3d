// An owned tensor: a Buffer with a dtype and a shape.
#pragma once

#include <initializer_list>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/core/buffer.h"
#include "kernels/core/status_macros.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// Move-only. Contents are undefined after Allocate. A default-constructed tensor is empty.
class Tensor {
 public:
  Tensor() = default;

  static absl::StatusOr<Tensor> Allocate(DType dtype, std::initializer_list<int64_t> shape,
                                         Device device) {
    const int64_t num_elements = ConstTensorView(nullptr, dtype, shape, device).num_elements();
    Tensor tensor;
    TW_ASSIGN_OR_RETURN(tensor.buffer_, Buffer::Allocate(DTypeBytes(dtype, num_elements), device));
    tensor.view_ = TensorView(tensor.buffer_.data(), dtype, shape, device);
    return tensor;
  }

  Tensor(Tensor&& other) noexcept
      : buffer_(std::move(other.buffer_)), view_(std::exchange(other.view_, TensorView())) {}
  Tensor& operator=(Tensor&& other) noexcept {
    buffer_ = std::move(other.buffer_);
    view_ = std::exchange(other.view_, TensorView());
    return *this;
  }

  bool empty() const { return view_.empty(); }
  ConstTensorView view() const { return view_; }
  TensorView mutable_view() { return view_; }
  int64_t size_bytes() const { return buffer_.size_bytes(); }

 private:
  Buffer buffer_;
  TensorView view_;
};

}  // namespace thinwire
