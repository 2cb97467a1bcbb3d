#include "kernels/group_codes/group_codes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/group_codes/group_codes_internal.h"

namespace thinwire {
namespace {

constexpr absl::string_view kEncode = "encode groups";
constexpr absl::string_view kDecode = "decode groups";

absl::Status CheckFormat(absl::string_view op, const GroupCodesFormat& format) {
  if (format.bits != 8 && format.bits != 6 && format.bits != 5 && format.bits != 4) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": expected 8, 6, 5 or 4 bits, found ", format.bits));
  }
  if (format.width < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": expected a width of at least 1, found ", format.width));
  }
  return absl::OkStatus();
}

absl::Status CheckValues(absl::string_view op, absl::string_view name, const ConstTensorView& view,
                         int64_t width) {
  if (view.rank() == 2 && IsFloat(view.dtype()) && view.dim(1) == width) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": expected ", name,
                                                 " of fp32, fp16 or bf16, [num_rows, ", width,
                                                 "], found ", view.DebugString()));
}

// Codes of as many rows as `values` has, on its device.
absl::Status CheckCodes(absl::string_view op, absl::string_view name, const ConstTensorView& codes,
                        const GroupCodesFormat& format, const ConstTensorView& values) {
  const int64_t num_rows = values.dim(0);
  if (codes.rank() == 2 && codes.dtype() == DType::kU8 && codes.dim(0) == num_rows &&
      codes.dim(1) == format.row_bytes() && codes.contiguous() &&
      codes.device() == values.device()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      op, ": expected ", name, " uint8[", num_rows, ", ", format.row_bytes(), "], contiguous, on ",
      DeviceName(values.device()), ", found ", codes.DebugString(),
      codes.contiguous() ? "" : ", strided,", " on ", DeviceName(codes.device())));
}

absl::Status CheckStream(absl::string_view op, absl::string_view name, const ConstTensorView& view,
                         const Stream& stream) {
  if (view.device() == stream.device()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": ", name, " is on ",
                                                 DeviceName(view.device()), ", the stream on ",
                                                 DeviceName(stream.device())));
}

absl::Status NotAvailable(absl::string_view op, Device device) {
  return absl::UnimplementedError(absl::StrCat(op, ": not available on ", DeviceName(device)));
}

}  // namespace

int64_t GroupCodesFormat::group() const {
  return std::min<int64_t>(width & -width, bits == 8 ? 128 : 64);
}

int64_t GroupCodesFormat::group_bytes() const {
  const int64_t size = group();
  if (bits == 8) return size;
  const int64_t high = bits == 6 ? (size + 3) / 4 : bits == 5 ? (size + 7) / 8 : 0;
  return (size + 1) / 2 + high;
}

absl::Status CheckEncodeGroupsArgs(const EncodeGroupsArgs& args) {
  TW_RETURN_IF_ERROR(CheckFormat(kEncode, args.format));
  TW_RETURN_IF_ERROR(CheckValues(kEncode, "x", args.x, args.format.width));
  return CheckCodes(kEncode, "codes", args.codes, args.format, args.x);
}

absl::Status CheckDecodeGroupsArgs(const DecodeGroupsArgs& args) {
  TW_RETURN_IF_ERROR(CheckFormat(kDecode, args.format));
  TW_RETURN_IF_ERROR(CheckValues(kDecode, "y", args.y, args.format.width));
  if (args.parts.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(kDecode, ": expected at least one part"));
  }
  for (size_t i = 0; i < args.parts.size(); ++i) {
    TW_RETURN_IF_ERROR(
        CheckCodes(kDecode, absl::StrCat("part ", i), args.parts[i], args.format, args.y));
  }
  return absl::OkStatus();
}

absl::Status EncodeGroups(const EncodeGroupsArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckEncodeGroupsArgs(args));
  TW_RETURN_IF_ERROR(CheckStream(kEncode, "x", args.x, stream));
  if (args.x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return EncodeGroupsCuda(args, stream);
    return NotAvailable(kEncode, stream.device());
  }
  EncodeGroupsCpu(args, stream);
  return absl::OkStatus();
}

absl::Status DecodeGroups(const DecodeGroupsArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckDecodeGroupsArgs(args));
  TW_RETURN_IF_ERROR(CheckStream(kDecode, "y", args.y, stream));
  if (args.y.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return DecodeGroupsCuda(args, stream);
    return NotAvailable(kDecode, stream.device());
  }
  DecodeGroupsCpu(args, stream);
  return absl::OkStatus();
}

}  // namespace thinwire
