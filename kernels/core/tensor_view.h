// Borrowed, typed, shaped memory: what operators and collectives take.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/device.h"
#include "kernels/core/dtype.h"
#include "kernels/core/float16.h"

namespace thinwire {

// The DType of a C++ element type.
template <typename T>
constexpr DType DTypeOf();
template <>
constexpr DType DTypeOf<float>() {
  return DType::kF32;
}
template <>
constexpr DType DTypeOf<Half>() {
  return DType::kF16;
}
template <>
constexpr DType DTypeOf<BFloat16>() {
  return DType::kBF16;
}
template <>
constexpr DType DTypeOf<int8_t>() {
  return DType::kI8;
}
template <>
constexpr DType DTypeOf<uint8_t>() {
  return DType::kU8;
}
template <>
constexpr DType DTypeOf<int32_t>() {
  return DType::kI32;
}
template <>
constexpr DType DTypeOf<int64_t>() {
  return DType::kI64;
}

// A read-only view of a dense row-major array: pointer, dtype, device, shape of up to kMaxRank
// dims. The innermost dims are contiguous; only the distance between rows (indices of dim 0) may be
// larger than a row, so that a view can be a column range of a wider matrix. Copies are cheap; it
// owns nothing. A default-constructed view is empty: null, rank 0, no elements. It stands for "not
// given".
class ConstTensorView {
 public:
  static constexpr int kMaxRank = 4;

  ConstTensorView() = default;
  ConstTensorView(const void* data, DType dtype, std::initializer_list<int64_t> shape,
                  Device device = Device::Cpu());

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  int rank() const { return rank_; }
  int64_t dim(int i) const {
    TW_DCHECK(i >= 0 && i < rank_);
    return shape_[i];
  }
  int64_t num_elements() const;

  // Elements from one index of dim 0 to the next: the product of the inner dims unless strided.
  int64_t row_stride() const { return row_stride_; }
  bool contiguous() const;

  // Bytes of a contiguous view.
  int64_t size_bytes() const;

  const void* raw() const { return data_; }

  // The first element; T must be the dtype's type.
  template <typename T>
  const T* data() const {
    TW_CHECK(DTypeOf<T>() == dtype_);
    return static_cast<const T*>(data_);
  }

  // Indices [begin, begin + count) of dim 0.
  ConstTensorView Rows(int64_t begin, int64_t count) const;

  // Columns [begin, begin + count) of a matrix.
  ConstTensorView Columns(int64_t begin, int64_t count) const;

  // "fp32[2, 512]": for messages.
  std::string DebugString() const;

 protected:
  const void* data_ = nullptr;
  std::array<int64_t, kMaxRank> shape_ = {};
  int64_t row_stride_ = 0;
  int rank_ = 0;
  DType dtype_ = DType::kF32;
  Device device_;
};

// The same, writable.
class TensorView : public ConstTensorView {
 public:
  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape,
             Device device = Device::Cpu())
      : ConstTensorView(data, dtype, shape, device) {}

  void* mutable_raw() const { return const_cast<void*>(data_); }

  template <typename T>
  T* mutable_data() const {
    TW_CHECK(DTypeOf<T>() == dtype_);
    return static_cast<T*>(mutable_raw());
  }

  TensorView Rows(int64_t begin, int64_t count) const {
    return TensorView(ConstTensorView::Rows(begin, count));
  }
  TensorView Columns(int64_t begin, int64_t count) const {
    return TensorView(ConstTensorView::Columns(begin, count));
  }

 private:
  explicit TensorView(const ConstTensorView& view) : ConstTensorView(view) {}
};

}  // namespace thinwire
