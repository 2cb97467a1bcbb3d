#include <cmath>

#include "kernels/convert/element.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_internal.h"

namespace thinwire {

absl::Status NormReference(const NormArgs& args) {
  TW_RETURN_IF_ERROR(CheckNormArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("norm reference: x must be on the CPU");
  }
  const int64_t hidden = args.x.dim(1);
  const auto n = static_cast<double>(hidden);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const int64_t row = t * args.x.row_stride();
    const auto x = [&](int64_t i) { return LoadElement(args.x, row + i); };
    if (!args.delta.empty()) {
      for (int64_t i = 0; i < hidden; ++i) {
        const double delta = LoadElement(args.delta, t * args.delta.row_stride() + i);
        StoreElement(args.x, row + i, x(i) + delta);
      }
    }
    double mean = 0.0;
    if (args.kind == NormKind::kLayerNorm) {
      for (int64_t i = 0; i < hidden; ++i) mean += x(i) / n;
    }
    double variance = 0.0;
    for (int64_t i = 0; i < hidden; ++i) variance += std::pow(x(i) - mean, 2) / n;
    for (int64_t i = 0; i < hidden; ++i) {
      const double weight = args.weight.empty() ? 1.0 : args.weight.data<float>()[i];
      const double bias = args.bias.empty() ? 0.0 : args.bias.data<float>()[i];
      const double y = (x(i) - mean) / std::sqrt(variance + args.epsilon) * weight + bias;
      StoreElement(args.out, t * args.out.row_stride() + i, y);
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
