#include "kernels/convert/convert.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/convert/convert_internal.h"
#include "kernels/core/has_cuda.h"

namespace thinwire {
namespace {

// Below this many elements, waking another thread costs more than it saves.
constexpr int64_t kElementsPerThread = 32768;

// Elements that stay in the first-level cache between fp16 -> fp32 and fp32 -> bf16.
constexpr int64_t kElementsInFlight = 1024;

void ConvertRange(const std::byte* from, DType from_dtype, std::byte* to, DType to_dtype,
                  int64_t n) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<size_t>(DTypeBytes(from_dtype, n)));
  } else if (to_dtype == DType::kF32) {
    ConvertToFloat(from, from_dtype, reinterpret_cast<float*>(to), n);
  } else if (from_dtype == DType::kF32) {
    ConvertFromFloat(reinterpret_cast<const float*>(from), to, to_dtype, n);
  } else {
    alignas(64) float values[kElementsInFlight];
    for (int64_t i = 0; i < n; i += kElementsInFlight) {
      const int64_t count = std::min(kElementsInFlight, n - i);
      ConvertToFloat(from + DTypeBytes(from_dtype, i), from_dtype, values, count);
      ConvertFromFloat(values, to + DTypeBytes(to_dtype, i), to_dtype, count);
    }
  }
}

absl::Status CheckArguments(const ConstTensorView& from, const TensorView& to) {
  bool same = from.rank() == to.rank();
  for (int d = 0; same && d < from.rank(); ++d) same = from.dim(d) == to.dim(d);
  if (!same || !IsFloat(from.dtype()) || !IsFloat(to.dtype())) {
    return absl::InvalidArgumentError(
        absl::StrCat("convert: expected fp32, fp16 or bf16 of equal shapes, found from ",
                     from.DebugString(), " and to ", to.DebugString()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Convert(ConstTensorView from, TensorView to, Stream& stream) {
  if (absl::Status status = CheckArguments(from, to); !status.ok()) return status;
  const Device device = stream.device();
  if (from.num_elements() == 0) return absl::OkStatus();
  if (from.device() != device || to.device() != device) {
    return absl::InvalidArgumentError(
        absl::StrCat("convert: from is on ", DeviceName(from.device()), ", to on ",
                     DeviceName(to.device()), ", the stream on ", DeviceName(device)));
  }
  if (device.kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return ConvertCuda(from, to, stream);
    return absl::UnimplementedError(absl::StrCat("convert: not available on ", DeviceName(device)));
  }
  const auto* source = static_cast<const std::byte*>(from.raw());
  auto* target = static_cast<std::byte*>(to.mutable_raw());
  // Contiguous views are one long row.
  const bool flat = from.contiguous() && to.contiguous();
  const int64_t num_rows = flat ? from.num_elements() : from.dim(0);
  const int64_t row = flat ? 1 : from.num_elements() / from.dim(0);
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / row);
  stream.pool().ParallelFor(num_rows, grain, [&](int64_t begin, int64_t end) {
    if (flat) {
      ConvertRange(source + DTypeBytes(from.dtype(), begin), from.dtype(),
                   target + DTypeBytes(to.dtype(), begin), to.dtype(), end - begin);
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      ConvertRange(source + DTypeBytes(from.dtype(), i * from.row_stride()), from.dtype(),
                   target + DTypeBytes(to.dtype(), i * to.row_stride()), to.dtype(), row);
    }
  });
  return absl::OkStatus();
}

}  // namespace thinwire
