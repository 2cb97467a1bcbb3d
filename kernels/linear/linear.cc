#include "kernels/linear/linear.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/linear_cpu.h"
#include "kernels/linear/linear_cuda.h"

namespace thinwire {
namespace {

absl::Status CheckArguments(const LinearArgs& args, Device device) {
  const ConstTensorView& x = args.x;
  const ConstTensorView& weight = args.weight;
  const ConstTensorView& bias = args.bias;
  const TensorView& y = args.y;
  const auto invalid = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        "linear: ", what, ": x ", x.DebugString(), ", weight ", weight.DebugString(), ", bias ",
        bias.empty() ? "none" : bias.DebugString(), ", y ", y.DebugString()));
  };
  if (x.rank() != 2 || weight.rank() != 2 || y.rank() != 2) return invalid("expected matrices");
  if (!IsFloat(x.dtype()) || !IsFloat(weight.dtype())) {
    return invalid("expected fp32, fp16 or bf16");
  }
  if (y.dtype() != x.dtype()) return invalid("y must have the dtype of x");
  if (x.dim(1) != weight.dim(1)) return invalid("x and weight differ in in_features");
  if (x.dim(1) == 0) return invalid("in_features is 0");
  if (y.dim(0) != x.dim(0) || y.dim(1) != weight.dim(0)) {
    return invalid("y must be [num_tokens, out_features]");
  }
  if (!weight.contiguous()) return invalid("weight must be contiguous");
  if (!bias.empty() &&
      (bias.rank() != 1 || bias.dim(0) != weight.dim(0) || bias.dtype() != DType::kF32)) {
    return invalid("bias must be fp32 [out_features]");
  }
  for (const ConstTensorView& view : {x, weight, bias, ConstTensorView(y)}) {
    if (!view.empty() && view.device() != device) {
      return absl::InvalidArgumentError(absl::StrCat("linear: a tensor is on ",
                                                     DeviceName(view.device()), ", the stream on ",
                                                     DeviceName(device)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Linear(const LinearArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckArguments(args, stream.device()));
  if (args.x.dim(0) == 0 || args.weight.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return LinearCuda(args, stream);
    return absl::UnimplementedError(
        absl::StrCat("linear: not available on ", DeviceName(stream.device())));
  }
  return LinearCpu(args, stream);
}

}  // namespace thinwire
