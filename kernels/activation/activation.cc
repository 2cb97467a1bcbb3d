#include "kernels/activation/activation.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/activation/activation_internal.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status CheckMatrix(absl::string_view name, const ConstTensorView& view,
                         const ConstTensorView& like) {
  if (view.rank() == 2 && IsFloat(view.dtype()) && view.dtype() == like.dtype() &&
      like.rank() == 2 && view.dim(0) == like.dim(0) && view.dim(1) == like.dim(1) &&
      view.device() == like.device()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "activation: expected ", name, " of fp32, fp16 or bf16, [num_tokens, width], like ",
      like.DebugString(), " on ", DeviceName(like.device()), ", found ", view.DebugString(), " on ",
      DeviceName(view.device())));
}

absl::Status Run(const GatedActivationArgs& args, Stream& stream) {
  const Device device = stream.device();
  if (args.out.device() != device) {
    return absl::InvalidArgumentError(absl::StrCat("activation: out is on ",
                                                   DeviceName(args.out.device()),
                                                   ", the stream on ", DeviceName(device)));
  }
  if (args.out.num_elements() == 0) return absl::OkStatus();
  if (device.kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return ActivationCuda(args, stream);
    return absl::UnimplementedError(
        absl::StrCat("activation: not available on ", DeviceName(device)));
  }
  ActivationCpu(args, stream);
  return absl::OkStatus();
}

}  // namespace

absl::Status Activate(ActivationKind kind, TensorView x, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckMatrix("x", x, x));
  return Run(GatedActivationArgs{kind, x, ConstTensorView(), x}, stream);
}

absl::Status GatedActivation(const GatedActivationArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckMatrix("out", args.out, args.out));
  TW_RETURN_IF_ERROR(CheckMatrix("gate", args.gate, args.out));
  TW_RETURN_IF_ERROR(CheckMatrix("up", args.up, args.out));
  return Run(args, stream);
}

}  // namespace thinwire
