#include <cstddef>
#include <vector>

#include "kernels/convert/element.h"
#include "kernels/core/check.h"
#include "kernels/linear/linear.h"

namespace thinwire {
namespace {

std::vector<double> LoadRow(const ConstTensorView& view, int64_t row) {
  std::vector<double> values;
  for (int64_t i = 0; i < view.dim(1); ++i) {
    values.push_back(LoadElement(view, row * view.row_stride() + i));
  }
  return values;
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
      StoreElement(args.y, t * args.y.row_stride() + o, sum);
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
