// For tests and benchmarks: tensors to a stream's device and back.
#pragma once

#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"

namespace thinwire {

// A dense copy of a view in host memory, of any shape, on the stream's device; done on return.
Tensor OnDevice(ConstTensorView host, Stream& stream);

// A dense copy in host memory of a view on the stream's device. Waits for the stream first.
Tensor OnHost(ConstTensorView view, Stream& stream);

// A dense tensor, uninitialised, of the shape of `view`.
Tensor TensorLike(const ConstTensorView& view, Device device);

// values[0..n) on the stream's device, [n].
template <typename T>
Tensor VectorOnDevice(const std::vector<T>& values, Stream& stream) {
  const auto size = static_cast<int64_t>(values.size());
  return OnDevice(ConstTensorView(values.data(), DTypeOf<T>(), {size}), stream);
}

// All elements of a view on the stream's device, row after row. Waits for the stream first.
template <typename T>
std::vector<T> Values(ConstTensorView view, Stream& stream) {
  const Tensor host = OnHost(view, stream);
  const T* const data = host.view().data<T>();
  return std::vector<T>(data, data + host.view().num_elements());
}

}  // namespace thinwire
