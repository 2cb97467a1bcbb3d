#include "kernels/convert/element.h"

#include "kernels/core/float16.h"

namespace thinwire {

double LoadElement(const ConstTensorView& view, int64_t i) {
  switch (view.dtype()) {
    case DType::kF32:
      return view.data<float>()[i];
    case DType::kF16:
      return ToFloat(view.data<Half>()[i]);
    default:
      return ToFloat(view.data<BFloat16>()[i]);
  }
}

void StoreElement(const TensorView& view, int64_t i, double value) {
  const auto rounded = static_cast<float>(value);
  switch (view.dtype()) {
    case DType::kF32:
      view.mutable_data<float>()[i] = rounded;
      return;
    case DType::kF16:
      view.mutable_data<Half>()[i] = ToHalf(rounded);
      return;
    default:
      view.mutable_data<BFloat16>()[i] = ToBFloat16(rounded);
  }
}

}  // namespace thinwire
