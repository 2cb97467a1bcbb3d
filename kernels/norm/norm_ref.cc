#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/convert/element.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_internal.h"

namespace thinwire {

namespace {

// A row x, after x += delta, normalised; in double.
std::vector<double> NormaliseRow(NormKind kind, const TensorView& x, const ConstTensorView& delta,
                                 int64_t t, float epsilon) {
  const int64_t hidden = x.dim(1);
  const auto n = static_cast<double>(hidden);
  std::vector<double> values;
  double mean = 0.0;
  for (int64_t i = 0; i < hidden; ++i) {
    const int64_t at = t * x.row_stride() + i;
    if (!delta.empty()) {
      StoreElement(x, at, LoadElement(x, at) + LoadElement(delta, t * delta.row_stride() + i));
    }
    values.push_back(LoadElement(x, at));
    if (kind == NormKind::kLayerNorm) mean += values.back() / n;
  }
  double variance = 0.0;
  for (const double value : values) variance += std::pow(value - mean, 2) / n;
  for (double& value : values) {
    value = (value - mean) / std::sqrt(variance + static_cast<double>(epsilon));
  }
  return values;
}

int64_t Channel(const ConstTensorView& order, int64_t j) {
  return order.empty() ? j : order.data<int32_t>()[j];
}

}  // namespace

absl::Status NormReference(const NormArgs& args) {
  TW_RETURN_IF_ERROR(CheckNormArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("norm reference: x must be on the CPU");
  }
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const std::vector<double> y = NormaliseRow(args.kind, args.x, args.delta, t, args.epsilon);
    for (int64_t j = 0; j < args.x.dim(1); ++j) {
      const double weight = args.weight.empty() ? 1.0 : args.weight.data<float>()[j];
      const double bias = args.bias.empty() ? 0.0 : args.bias.data<float>()[j];
      StoreElement(args.out, t * args.out.row_stride() + j,
                   y[Channel(args.order, j)] * weight + bias);
    }
  }
  return absl::OkStatus();
}

absl::Status NormCodesReference(const NormCodesArgs& args) {
  TW_RETURN_IF_ERROR(CheckNormCodesArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("norm to codes reference: x must be on the CPU");
  }
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const std::vector<double> y = NormaliseRow(args.kind, args.x, args.delta, t, args.epsilon);
    uint8_t* const codes = args.codes.mutable_data<uint8_t>() + t * args.codes.row_stride();
    for (int64_t j = 0; j < args.x.dim(1); ++j) {
      const double value =
          y[Channel(args.order, j)] * static_cast<double>(args.weight.data<float>()[j]) +
          static_cast<double>(args.bias.data<float>()[j]);
      const double most = args.max_code.data<uint8_t>()[j];
      // nearbyint rounds halves to even.
      codes[j] = static_cast<uint8_t>(
          std::isnan(value) ? 0.0 : std::clamp(std::nearbyint(value), 0.0, most));
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
