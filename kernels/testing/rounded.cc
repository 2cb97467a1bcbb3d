#include "kernels/testing/rounded.h"

#include <random>

#include "kernels/convert/convert.h"
#include "kernels/core/check.h"

namespace thinwire {

double UnitRoundoff(DType dtype) {
  TW_CHECK(IsFloat(dtype));
  return dtype == DType::kF32 ? 0x1p-24 : dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
}

Tensor RoundedTensor(const std::vector<float>& values, DType dtype, int64_t rows, int64_t columns) {
  TW_CHECK_EQ(static_cast<int64_t>(values.size()), rows * columns);
  Tensor tensor = Tensor::Allocate(dtype, {rows, columns}, Device::Cpu()).value();
  ConvertFromFloat(values.data(), tensor.mutable_view().mutable_raw(), dtype, rows * columns);
  return tensor;
}

Tensor NormalTensor(DType dtype, int64_t rows, int64_t columns) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values;
  for (int64_t i = 0; i < rows * columns; ++i) values.push_back(normal(random));
  return RoundedTensor(values, dtype, rows, columns);
}

std::vector<float> Floats(const Tensor& tensor) {
  const ConstTensorView view = tensor.view();
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  ConvertToFloat(view.raw(), view.dtype(), values.data(), view.num_elements());
  return values;
}

}  // namespace thinwire
