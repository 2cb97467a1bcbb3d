#include "kernels/convert/gather.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/convert/convert_internal.h"
#include "kernels/core/has_cuda.h"

namespace thinwire {
namespace {

// Less than this is not worth waking a thread.
constexpr int64_t kElementsPerThread = 32768;

template <typename T>
void GatherRow(const T* from, const int32_t* order, T* to, int64_t width) {
  for (int64_t j = 0; j < width; ++j) to[j] = from[order[j]];
}

}  // namespace

absl::Status GatherColumns(ConstTensorView x, ConstTensorView order, TensorView out,
                           Stream& stream) {
  if (x.rank() != 2 || !IsFloat(x.dtype()) || out.rank() != 2 || out.dim(0) != x.dim(0) ||
      out.dim(1) != x.dim(1) || out.dtype() != x.dtype() || order.rank() != 1 ||
      order.dtype() != DType::kI32 || order.dim(0) != x.dim(1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gather_columns: x ", x.DebugString(), ", order ", order.DebugString(), ", out ",
        out.DebugString(), ": expected x and out alike, of floats, and one index a column"));
  }
  const Device device = stream.device();
  if (x.device() != device || order.device() != device || out.device() != device) {
    return absl::InvalidArgumentError(
        absl::StrCat("gather_columns: x is on ", DeviceName(x.device()), ", order on ",
                     DeviceName(order.device()), ", out on ", DeviceName(out.device()),
                     ", the stream on ", DeviceName(device)));
  }
  if (x.num_elements() == 0) return absl::OkStatus();
  if (device.kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return GatherColumnsCuda(x, order, out, stream);
    return absl::UnimplementedError(
        absl::StrCat("gather_columns: not available on ", DeviceName(stream.device())));
  }
  const int64_t width = x.dim(1);
  const int64_t bytes = DTypeBytes(x.dtype(), 1);
  const auto* indices = order.data<int32_t>();
  const auto* from = static_cast<const std::byte*>(x.raw());
  auto* to = static_cast<std::byte*>(out.mutable_raw());
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, width));
  stream.pool().ParallelFor(x.dim(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const std::byte* row = from + t * x.row_stride() * bytes;
      std::byte* result = to + t * out.row_stride() * bytes;
      if (bytes == 4) {
        GatherRow(reinterpret_cast<const uint32_t*>(row), indices,
                  reinterpret_cast<uint32_t*>(result), width);
      } else {
        GatherRow(reinterpret_cast<const uint16_t*>(row), indices,
                  reinterpret_cast<uint16_t*>(result), width);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace thinwire
