#include <cmath>

#include "kernels/convert/element.h"
#include "kernels/core/status_macros.h"
#include "kernels/rope/rope.h"
#include "kernels/rope/rope_internal.h"

namespace thinwire {

absl::Status RopeReference(const RopeArgs& args) {
  TW_RETURN_IF_ERROR(CheckRopeArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("rope reference: x must be on the CPU");
  }
  const int64_t half = args.head_dim / 2;
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t h = 0; h < args.num_heads; ++h) {
      const int64_t head = t * args.x.row_stride() + h * args.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const float angle =
            static_cast<float>(args.positions.data<int32_t>()[t]) * args.inv_freq.data<float>()[i];
        const double c = std::cos(static_cast<double>(angle));
        const double s = std::sin(static_cast<double>(angle));
        const double a = LoadElement(args.x, head + i);
        const double b = LoadElement(args.x, head + i + half);
        StoreElement(args.x, head + i, a * c - b * s);
        StoreElement(args.x, head + i + half, b * c + a * s);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
