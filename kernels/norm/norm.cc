#include "kernels/norm/norm.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/core/status_macros.h"
#include "kernels/norm/norm_internal.h"

namespace thinwire {
namespace {

absl::Status CheckX(absl::string_view op, const TensorView& x) {
  if (x.rank() == 2 && IsFloat(x.dtype()) && x.dim(1) > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      op, ": expected x of fp32, fp16 or bf16, [num_tokens, hidden], found ", x.DebugString()));
}

// `view` is like x: shape, dtype, device.
absl::Status CheckLikeX(absl::string_view op, absl::string_view name, const ConstTensorView& view,
                        const TensorView& x) {
  if (view.rank() == 2 && view.dim(0) == x.dim(0) && view.dim(1) == x.dim(1) &&
      view.dtype() == x.dtype() && view.device() == x.device()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      op, ": expected ", name, " like x, ", x.DebugString(), " on ", DeviceName(x.device()),
      ", found ", view.DebugString(), " on ", DeviceName(view.device())));
}

absl::Status CheckPerChannel(absl::string_view name, const ConstTensorView& view,
                             const TensorView& x) {
  if (view.empty() || (view.rank() == 1 && view.dtype() == DType::kF32 && view.dim(0) == x.dim(1) &&
                       view.contiguous() && view.device() == x.device())) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("norm: expected ", name, " fp32[", x.dim(1), "] on ", DeviceName(x.device()),
                   ", found ", view.DebugString(), " on ", DeviceName(view.device())));
}

absl::Status CheckStream(absl::string_view op, const TensorView& x, const Stream& stream) {
  if (x.device() == stream.device()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": x is on ", DeviceName(x.device()),
                                                 ", the stream on ", DeviceName(stream.device())));
}

absl::Status NotAvailable(absl::string_view op, Device device) {
  return absl::UnimplementedError(absl::StrCat(op, ": not available on ", DeviceName(device)));
}

}  // namespace

absl::Status CheckNormArgs(const NormArgs& args) {
  TW_RETURN_IF_ERROR(CheckX("norm", args.x));
  TW_RETURN_IF_ERROR(CheckLikeX("norm", "out", args.out, args.x));
  if (!args.delta.empty()) TW_RETURN_IF_ERROR(CheckLikeX("norm", "delta", args.delta, args.x));
  TW_RETURN_IF_ERROR(CheckPerChannel("weight", args.weight, args.x));
  TW_RETURN_IF_ERROR(CheckPerChannel("bias", args.bias, args.x));
  if (args.kind == NormKind::kRmsNorm && !args.bias.empty()) {
    return absl::InvalidArgumentError("norm: RMSNorm has no bias, but one was given");
  }
  if (!(args.epsilon >= 0.0f) || std::isinf(args.epsilon)) {
    return absl::InvalidArgumentError(
        absl::StrCat("norm: expected a finite epsilon >= 0, found ", args.epsilon));
  }
  return absl::OkStatus();
}

absl::Status Norm(const NormArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckNormArgs(args));
  TW_RETURN_IF_ERROR(CheckStream("norm", args.x, stream));
  if (args.x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) return NotAvailable("norm", stream.device());
  NormCpu(args, stream);
  return absl::OkStatus();
}

absl::Status AddInPlace(TensorView x, ConstTensorView delta, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckX("add", x));
  TW_RETURN_IF_ERROR(CheckLikeX("add", "delta", delta, x));
  TW_RETURN_IF_ERROR(CheckStream("add", x, stream));
  if (x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) return NotAvailable("add", stream.device());
  AddInPlaceCpu(x, delta, stream);
  return absl::OkStatus();
}

}  // namespace thinwire
