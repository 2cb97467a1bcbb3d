#include "kernels/codes/codes.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/codes/codes_internal.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status CheckX(absl::string_view op, const ConstTensorView& x) {
  if (x.rank() == 2 && IsFloat(x.dtype()) && x.dim(1) > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      op, ": expected x of fp32, fp16 or bf16, [num_tokens, width], found ", x.DebugString()));
}

absl::Status CheckVector(absl::string_view op, absl::string_view name, const ConstTensorView& view,
                         DType dtype, int64_t size, Device device) {
  if (view.rank() == 1 && view.dtype() == dtype && view.dim(0) == size && view.contiguous() &&
      view.device() == device) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      op, ": expected ", name, " ", DTypeName(dtype), "[", size, "] on ", DeviceName(device),
      ", found ", view.DebugString(), " on ", DeviceName(view.device())));
}

absl::Status CheckStream(absl::string_view op, const ConstTensorView& x, const Stream& stream) {
  if (x.device() == stream.device()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": x is on ", DeviceName(x.device()),
                                                 ", the stream on ", DeviceName(stream.device())));
}

absl::Status NotAvailable(absl::string_view op, Device device) {
  return absl::UnimplementedError(absl::StrCat(op, ": not available on ", DeviceName(device)));
}

}  // namespace

absl::Status CheckQuantizeArgs(const QuantizeArgs& args) {
  constexpr absl::string_view kOp = "quantize";
  TW_RETURN_IF_ERROR(CheckX(kOp, args.x));
  const int64_t width = args.x.dim(1);
  const Device device = args.x.device();
  TW_RETURN_IF_ERROR(
      CheckVector(kOp, "inverse_step", args.inverse_step, DType::kF32, width, device));
  TW_RETURN_IF_ERROR(CheckVector(kOp, "zero", args.zero, DType::kF32, width, device));
  TW_RETURN_IF_ERROR(CheckVector(kOp, "max_code", args.max_code, DType::kU8, width, device));
  if (!args.snap.empty()) {
    TW_RETURN_IF_ERROR(CheckVector(kOp, "snap", args.snap, DType::kU8, 256, device));
  }
  if (args.gain != GainKind::kNone || !args.gains.empty()) {
    TW_RETURN_IF_ERROR(CheckVector(kOp, "gains", args.gains, DType::kF32, args.x.dim(0), device));
  }
  if (args.codes.rank() != 2 || args.codes.dtype() != DType::kU8 ||
      args.codes.dim(0) != args.x.dim(0) || args.codes.dim(1) != width ||
      args.codes.device() != device) {
    return absl::InvalidArgumentError(absl::StrCat(
        kOp, ": expected codes uint8[", args.x.dim(0), ", ", width, "] on ", DeviceName(device),
        ", found ", args.codes.DebugString(), " on ", DeviceName(args.codes.device())));
  }
  return absl::OkStatus();
}

absl::Status CheckRoundToCodesArgs(const RoundToCodesArgs& args) {
  constexpr absl::string_view kOp = "round to codes";
  TW_RETURN_IF_ERROR(CheckX(kOp, args.x));
  const int64_t width = args.x.dim(1);
  const Device device = args.x.device();
  TW_RETURN_IF_ERROR(CheckVector(kOp, "step", args.step, DType::kF32, width, device));
  TW_RETURN_IF_ERROR(
      CheckVector(kOp, "inverse_step", args.inverse_step, DType::kF32, width, device));
  TW_RETURN_IF_ERROR(CheckVector(kOp, "zero", args.zero, DType::kF32, width, device));
  return CheckVector(kOp, "max_code", args.max_code, DType::kU8, width, device);
}

absl::Status Quantize(const QuantizeArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckQuantizeArgs(args));
  TW_RETURN_IF_ERROR(CheckStream("quantize", args.x, stream));
  if (args.x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return QuantizeCuda(args, stream);
    return NotAvailable("quantize", stream.device());
  }
  QuantizeCpu(args, stream);
  return absl::OkStatus();
}

absl::Status MaxGains(ConstTensorView x, ConstTensorView inverse_step, TensorView gains,
                      Stream& stream) {
  constexpr absl::string_view kOp = "max gains";
  TW_RETURN_IF_ERROR(CheckX(kOp, x));
  TW_RETURN_IF_ERROR(
      CheckVector(kOp, "inverse_step", inverse_step, DType::kF32, x.dim(1), x.device()));
  TW_RETURN_IF_ERROR(CheckVector(kOp, "gains", gains, DType::kF32, x.dim(0), x.device()));
  TW_RETURN_IF_ERROR(CheckStream(kOp, x, stream));
  if (x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return MaxGainsCuda(x, inverse_step, gains, stream);
    return NotAvailable(kOp, stream.device());
  }
  MaxGainsCpu(x, inverse_step.data<float>(), gains.mutable_data<float>(), stream);
  return absl::OkStatus();
}

absl::Status RoundToCodes(const RoundToCodesArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckRoundToCodesArgs(args));
  TW_RETURN_IF_ERROR(CheckStream("round to codes", args.x, stream));
  if (args.x.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return RoundToCodesCuda(args, stream);
    return NotAvailable("round to codes", stream.device());
  }
  RoundToCodesCpu(args, stream);
  return absl::OkStatus();
}

}  // namespace thinwire
