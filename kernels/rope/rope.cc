#include "kernels/rope/rope.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/rope/rope_internal.h"

namespace thinwire {

absl::Status CheckRopeArgs(const RopeArgs& args) {
  if (args.num_heads < 1 || args.head_dim < 2 || args.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope: expected num_heads >= 1 and an even head_dim >= 2, found ",
                     args.num_heads, " and ", args.head_dim));
  }
  if (args.x.rank() != 2 || !IsFloat(args.x.dtype()) ||
      args.x.dim(1) != args.num_heads * args.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope: expected x of fp32, fp16 or bf16, [num_tokens, ", args.num_heads, " * ",
                     args.head_dim, "], found ", args.x.DebugString()));
  }
  const int64_t num_tokens = args.x.dim(0);
  if (args.positions.rank() != 1 || args.positions.dtype() != DType::kI32 ||
      args.positions.dim(0) != num_tokens || !args.positions.contiguous()) {
    return absl::InvalidArgumentError(absl::StrCat("rope: expected positions int32[", num_tokens,
                                                   "], found ", args.positions.DebugString()));
  }
  if (args.inv_freq.rank() != 1 || args.inv_freq.dtype() != DType::kF32 ||
      args.inv_freq.dim(0) != args.head_dim / 2 || !args.inv_freq.contiguous()) {
    return absl::InvalidArgumentError(absl::StrCat("rope: expected inv_freq fp32[",
                                                   args.head_dim / 2, "], found ",
                                                   args.inv_freq.DebugString()));
  }
  const Device device = args.x.device();
  if (args.positions.device() != device || args.inv_freq.device() != device) {
    return absl::InvalidArgumentError(absl::StrCat(
        "rope: x is on ", DeviceName(device), ", positions on ",
        DeviceName(args.positions.device()), ", inv_freq on ", DeviceName(args.inv_freq.device())));
  }
  return absl::OkStatus();
}

absl::Status Rope(const RopeArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckRopeArgs(args));
  const Device device = stream.device();
  if (args.x.device() != device) {
    return absl::InvalidArgumentError(absl::StrCat("rope: x is on ", DeviceName(args.x.device()),
                                                   ", the stream on ", DeviceName(device)));
  }
  if (args.x.dim(0) == 0) return absl::OkStatus();
  if (device.kind == DeviceKind::kCpu) return RopeCpu(args, stream);
  if constexpr (kHasCuda) return RopeCuda(args, stream);
  return absl::UnimplementedError(absl::StrCat("rope: not available on ", DeviceName(device)));
}

}  // namespace thinwire
