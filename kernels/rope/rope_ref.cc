#include <cmath>

#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"
#include "kernels/rope/rope.h"
#include "kernels/rope/rope_internal.h"

namespace thinwire {
namespace {

void Store(double value, float* to) { *to = static_cast<float>(value); }
void Store(double value, Half* to) { *to = ToHalf(static_cast<float>(value)); }
void Store(double value, BFloat16* to) { *to = ToBFloat16(static_cast<float>(value)); }

template <typename T>
void Rotate(const RopeArgs& args) {
  const int64_t half = args.head_dim / 2;
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t h = 0; h < args.num_heads; ++h) {
      T* x = args.x.mutable_data<T>() + t * args.x.row_stride() + h * args.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const float angle =
            static_cast<float>(args.positions.data<int32_t>()[t]) * args.inv_freq.data<float>()[i];
        const double c = std::cos(static_cast<double>(angle));
        const double s = std::sin(static_cast<double>(angle));
        const double a = ToFloat(x[i]);
        const double b = ToFloat(x[i + half]);
        Store(a * c - b * s, &x[i]);
        Store(b * c + a * s, &x[i + half]);
      }
    }
  }
}

}  // namespace

absl::Status RopeReference(const RopeArgs& args) {
  TW_RETURN_IF_ERROR(CheckRopeArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("rope reference: x must be on the CPU");
  }
  if (args.x.dtype() == DType::kF32) {
    Rotate<float>(args);
  } else if (args.x.dtype() == DType::kF16) {
    Rotate<Half>(args);
  } else {
    Rotate<BFloat16>(args);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
