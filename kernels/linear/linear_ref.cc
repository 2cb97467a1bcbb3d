#include <cstddef>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/float16.h"
#include "kernels/linear/linear.h"

namespace thinwire {
namespace {

std::vector<double> LoadRow(const ConstTensorView& view, int64_t row) {
  std::vector<double> values;
  for (int64_t i = row * view.row_stride(); i < row * view.row_stride() + view.dim(1); ++i) {
    switch (view.dtype()) {
      case DType::kF32:
        values.push_back(static_cast<double>(view.data<float>()[i]));
        break;
      case DType::kF16:
        values.push_back(static_cast<double>(ToFloat(view.data<Half>()[i])));
        break;
      default:
        values.push_back(static_cast<double>(ToFloat(view.data<BFloat16>()[i])));
    }
  }
  return values;
}

void Store(const TensorView& view, int64_t row, int64_t column, double value) {
  const int64_t i = row * view.row_stride() + column;
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

}  // namespace

absl::Status LinearReference(const LinearArgs& args) {
  TW_CHECK(IsFloat(args.x.dtype()) && IsFloat(args.weight.dtype()));
  std::vector<std::vector<double>> x;
  for (int64_t t = 0; t < args.x.dim(0); ++t) x.push_back(LoadRow(args.x, t));
  for (int64_t o = 0; o < args.weight.dim(0); ++o) {
    const std::vector<double> weight = LoadRow(args.weight, o);
    const double bias = args.bias.empty() ? 0.0 : static_cast<double>(args.bias.data<float>()[o]);
    for (int64_t t = 0; t < args.x.dim(0); ++t) {
      double sum = bias;
      for (size_t i = 0; i < weight.size(); ++i) sum += x[t][i] * weight[i];
      Store(args.y, t, o, sum);
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
