#include <cmath>

#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/norm_internal.h"

namespace thinwire {
namespace {

void Store(double value, float* to) { *to = static_cast<float>(value); }
void Store(double value, Half* to) { *to = ToHalf(static_cast<float>(value)); }
void Store(double value, BFloat16* to) { *to = ToBFloat16(static_cast<float>(value)); }

template <typename T>
void Normalise(const NormArgs& args) {
  const int64_t hidden = args.x.dim(1);
  const auto n = static_cast<double>(hidden);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    T* x = args.x.mutable_data<T>() + t * args.x.row_stride();
    T* out = args.out.mutable_data<T>() + t * args.out.row_stride();
    if (!args.delta.empty()) {
      const T* delta = args.delta.data<T>() + t * args.delta.row_stride();
      for (int64_t i = 0; i < hidden; ++i) {
        Store(static_cast<double>(ToFloat(x[i])) + ToFloat(delta[i]), &x[i]);
      }
    }
    double mean = 0.0;
    if (args.kind == NormKind::kLayerNorm) {
      for (int64_t i = 0; i < hidden; ++i) mean += ToFloat(x[i]) / n;
    }
    double variance = 0.0;
    for (int64_t i = 0; i < hidden; ++i) variance += std::pow(ToFloat(x[i]) - mean, 2) / n;
    for (int64_t i = 0; i < hidden; ++i) {
      const double weight = args.weight.empty() ? 1.0 : args.weight.data<float>()[i];
      const double bias = args.bias.empty() ? 0.0 : args.bias.data<float>()[i];
      Store((ToFloat(x[i]) - mean) / std::sqrt(variance + args.epsilon) * weight + bias, &out[i]);
    }
  }
}

}  // namespace

absl::Status NormReference(const NormArgs& args) {
  TW_RETURN_IF_ERROR(CheckNormArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("norm reference: x must be on the CPU");
  }
  if (args.x.dtype() == DType::kF32) {
    Normalise<float>(args);
  } else if (args.x.dtype() == DType::kF16) {
    Normalise<Half>(args);
  } else {
    Normalise<BFloat16>(args);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
