#include "kernels/norm/norm.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/core/has_cuda.h"
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

absl::Status CheckPerChannel(absl::string_view op, absl::string_view name,
                             const ConstTensorView& view, DType dtype, const TensorView& x) {
  if (view.rank() == 1 && view.dtype() == dtype && view.dim(0) == x.dim(1) && view.contiguous() &&
      view.device() == x.device()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      op, ": expected ", name, " ", DTypeName(dtype), "[", x.dim(1), "] on ",
      DeviceName(x.device()), ", found ", view.DebugString(), " on ", DeviceName(view.device())));
}

absl::Status CheckOrder(absl::string_view op, const ConstTensorView& order, const TensorView& x) {
  TW_RETURN_IF_ERROR(CheckPerChannel(op, "order", order, DType::kI32, x));
  // On a device, whoever made the order answers for its contents.
  if (order.device() != Device::Cpu()) return absl::OkStatus();
  const int32_t* const begin = order.data<int32_t>();
  const auto hidden = static_cast<uint32_t>(x.dim(1));
  uint32_t largest = 0;
  for (int64_t j = 0; j < x.dim(1); ++j) {
    largest = std::max(largest, static_cast<uint32_t>(begin[j]));
  }
  if (largest < hidden) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": expected an order of channels 0 to ",
                                                 hidden - 1, ", found ",
                                                 static_cast<int32_t>(largest)));
}

absl::Status CheckEpsilon(absl::string_view op, float epsilon) {
  if (epsilon >= 0.0f && !std::isinf(epsilon)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(op, ": expected a finite epsilon >= 0, found ", epsilon));
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
  if (!args.weight.empty()) {
    TW_RETURN_IF_ERROR(CheckPerChannel("norm", "weight", args.weight, DType::kF32, args.x));
  }
  if (!args.bias.empty()) {
    TW_RETURN_IF_ERROR(CheckPerChannel("norm", "bias", args.bias, DType::kF32, args.x));
  }
  if (!args.order.empty()) {
    TW_RETURN_IF_ERROR(CheckOrder("norm", args.order, args.x));
    if (args.out.raw() == args.x.raw() && args.x.dim(0) > 0) {
      return absl::InvalidArgumentError("norm: with an order, out must not be x");
    }
  }
  if (args.kind == NormKind::kRmsNorm && !args.bias.empty()) {
    return absl::InvalidArgumentError("norm: RMSNorm has no bias, but one was given");
  }
  return CheckEpsilon("norm", args.epsilon);
}

absl::Status CheckNormCodesArgs(const NormCodesArgs& args) {
  constexpr absl::string_view kOp = "norm to codes";
  TW_RETURN_IF_ERROR(CheckX(kOp, args.x));
  if (!args.delta.empty()) TW_RETURN_IF_ERROR(CheckLikeX(kOp, "delta", args.delta, args.x));
  if (!args.order.empty()) TW_RETURN_IF_ERROR(CheckOrder(kOp, args.order, args.x));
  TW_RETURN_IF_ERROR(CheckPerChannel(kOp, "weight", args.weight, DType::kF32, args.x));
  TW_RETURN_IF_ERROR(CheckPerChannel(kOp, "bias", args.bias, DType::kF32, args.x));
  TW_RETURN_IF_ERROR(CheckPerChannel(kOp, "max_code", args.max_code, DType::kU8, args.x));
  const TensorView& codes = args.codes;
  if (codes.rank() != 2 || codes.dtype() != DType::kU8 || codes.dim(0) != args.x.dim(0) ||
      codes.dim(1) != args.x.dim(1) || codes.device() != args.x.device()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": expected codes uint8[", args.x.dim(0), ", ", args.x.dim(1), "] on ",
                     DeviceName(args.x.device()), ", found ", codes.DebugString(), " on ",
                     DeviceName(codes.device())));
  }
  return CheckEpsilon(kOp, args.epsilon);
}

absl::Status Norm(const NormArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckNormArgs(args));
  TW_RETURN_IF_ERROR(CheckStream("norm", args.x, stream));
  if (args.x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind == DeviceKind::kCpu) return NormCpu(args, stream);
  if constexpr (kHasCuda) return NormCuda(args, stream);
  return NotAvailable("norm", stream.device());
}

absl::Status NormCodes(const NormCodesArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckNormCodesArgs(args));
  TW_RETURN_IF_ERROR(CheckStream("norm to codes", args.x, stream));
  if (args.x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind == DeviceKind::kCpu) return NormCodesCpu(args, stream);
  if constexpr (kHasCuda) return NormCodesCuda(args, stream);
  return NotAvailable("norm to codes", stream.device());
}

absl::Status AddInPlace(TensorView x, ConstTensorView delta, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckX("add", x));
  TW_RETURN_IF_ERROR(CheckLikeX("add", "delta", delta, x));
  TW_RETURN_IF_ERROR(CheckStream("add", x, stream));
  if (x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind == DeviceKind::kCuda) {
    if constexpr (kHasCuda) return AddInPlaceCuda(x, delta, stream);
    return NotAvailable("add", stream.device());
  }
  AddInPlaceCpu(x, delta, stream);
  return absl::OkStatus();
}

absl::Status ScaleInPlace(TensorView x, ConstTensorView weight, ConstTensorView bias,
                          Stream& stream) {
  TW_RETURN_IF_ERROR(CheckX("scale", x));
  if (!weight.empty()) {
    TW_RETURN_IF_ERROR(CheckPerChannel("scale", "weight", weight, DType::kF32, x));
  }
  if (!bias.empty()) TW_RETURN_IF_ERROR(CheckPerChannel("scale", "bias", bias, DType::kF32, x));
  TW_RETURN_IF_ERROR(CheckStream("scale", x, stream));
  if (x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind == DeviceKind::kCuda) {
    if constexpr (kHasCuda) return ScaleInPlaceCuda(x, weight, bias, stream);
    return NotAvailable("scale", stream.device());
  }
  ScaleInPlaceCpu(x, weight, bias, stream);
  return absl::OkStatus();
}

}  // namespace thinwire
