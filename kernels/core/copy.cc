#include "kernels/core/copy.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/core/backend.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status CheckCopy(const ConstTensorView& from, const TensorView& to, const Stream& stream) {
  bool alike = from.dtype() == to.dtype() && from.rank() == to.rank();
  for (int d = 0; alike && d < from.rank(); ++d) alike = from.dim(d) == to.dim(d);
  if (!alike) {
    return absl::InvalidArgumentError(absl::StrCat("copy: expected two views alike, found ",
                                                   from.DebugString(), " and ", to.DebugString()));
  }
  for (const Device device : {from.device(), to.device()}) {
    if (device == Device::Cpu() || device == stream.device()) continue;
    return absl::InvalidArgumentError(absl::StrCat("copy: a view is on ", DeviceName(device),
                                                   ", the stream on ",
                                                   DeviceName(stream.device())));
  }
  return absl::OkStatus();
}

// A copy engine moves more per second than kernels that reach over the bus.
constexpr int64_t kFewBytes = 32 << 10;

}  // namespace

absl::Status CopyPinned(ConstTensorView from, TensorView to, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckCopy(from, to, stream));
  if (!from.contiguous() || !to.contiguous()) {
    return absl::InvalidArgumentError(absl::StrCat("copy: expected contiguous views, found ",
                                                   from.DebugString(), " and ", to.DebugString()));
  }
  if (stream.device() == Device::Cpu() || from.size_bytes() > kFewBytes) {
    return Copy(from, to, stream);
  }
  if (from.num_elements() == 0) return absl::OkStatus();
  return backend::CopyFewBytesAsync(to.mutable_raw(), from.raw(), from.size_bytes(),
                                    stream.native(), stream.device());
}

absl::Status Copy(ConstTensorView from, TensorView to, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckCopy(from, to, stream));
  int64_t rows = from.rank() == 0 ? 0 : from.dim(0);
  if (from.num_elements() == 0) return absl::OkStatus();
  int64_t row_bytes = DTypeBytes(from.dtype(), from.num_elements() / rows);
  int64_t from_stride = DTypeBytes(from.dtype(), from.row_stride());
  int64_t to_stride = DTypeBytes(to.dtype(), to.row_stride());
  if (from.contiguous() && to.contiguous()) {
    row_bytes = from_stride = to_stride = from.size_bytes();
    rows = 1;
  }
  if (stream.device() == Device::Cpu()) {
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(static_cast<std::byte*>(to.mutable_raw()) + i * to_stride,
                  static_cast<const std::byte*>(from.raw()) + i * from_stride,
                  static_cast<size_t>(row_bytes));
    }
    return absl::OkStatus();
  }
  return backend::CopyRowsAsync(to.mutable_raw(), to_stride, from.raw(), from_stride, row_bytes,
                                rows, stream.native(), stream.device());
}

}  // namespace thinwire
