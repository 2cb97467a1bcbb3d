#include "kernels/testing/on_device.h"

#include "kernels/core/copy.h"

namespace thinwire {
namespace {

Tensor CopyTo(ConstTensorView view, Device device, Stream& stream) {
  Tensor copy = TensorLike(view, device);
  TW_CHECK(Copy(view, copy.mutable_view(), stream).ok());
  const absl::Status done = stream.Synchronize();
  if (!done.ok()) internal::CheckFailed(__FILE__, __LINE__, done.ToString());
  return copy;
}

}  // namespace

Tensor TensorLike(const ConstTensorView& view, Device device) {
  const auto allocate = [&](std::initializer_list<int64_t> shape) {
    return Tensor::Allocate(view.dtype(), shape, device).value();
  };
  switch (view.rank()) {
    case 1:
      return allocate({view.dim(0)});
    case 2:
      return allocate({view.dim(0), view.dim(1)});
    case 3:
      return allocate({view.dim(0), view.dim(1), view.dim(2)});
    default:
      TW_CHECK_EQ(view.rank(), 4);
      return allocate({view.dim(0), view.dim(1), view.dim(2), view.dim(3)});
  }
}

Tensor OnDevice(ConstTensorView host, Stream& stream) {
  return CopyTo(host, stream.device(), stream);
}

Tensor OnHost(ConstTensorView view, Stream& stream) { return CopyTo(view, Device::Cpu(), stream); }

}  // namespace thinwire
