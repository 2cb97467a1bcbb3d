#include "kernels/embedding/embedding.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/embedding/embedding_internal.h"

namespace thinwire {
namespace {

absl::Status CheckEmbeddingArgs(const EmbeddingArgs& args) {
  const auto is_matrix = [](const ConstTensorView& view) {
    return view.rank() == 2 && IsFloat(view.dtype());
  };
  if (!is_matrix(args.table) || !is_matrix(args.out) || args.table.dim(1) != args.out.dim(1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "embedding: expected table [num_rows, width] and out [num_tokens, width] of fp32, fp16 or "
        "bf16, found table ",
        args.table.DebugString(), " and out ", args.out.DebugString()));
  }
  if (args.ids.rank() != 1 || args.ids.dtype() != DType::kI32 || !args.ids.contiguous() ||
      args.ids.dim(0) != args.out.dim(0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "embedding: expected ids int32[", args.out.dim(0), "], found ", args.ids.DebugString()));
  }
  const ConstTensorView& late = args.late_ids;
  if (!late.empty() && (late.rank() != 1 || late.dtype() != DType::kI32 || !late.contiguous())) {
    return absl::InvalidArgumentError(
        absl::StrCat("embedding: expected late ids int32[any], found ", late.DebugString()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Embedding(const EmbeddingArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckEmbeddingArgs(args));
  const Device device = stream.device();
  if (args.ids.device() != device || args.table.device() != device || args.out.device() != device) {
    return absl::InvalidArgumentError(
        absl::StrCat("embedding: ids are on ", DeviceName(args.ids.device()), ", table on ",
                     DeviceName(args.table.device()), ", out on ", DeviceName(args.out.device()),
                     ", the stream on ", DeviceName(device)));
  }
  if (!args.late_ids.empty() && args.late_ids.device() != device) {
    return absl::InvalidArgumentError(absl::StrCat("embedding: late ids are on ",
                                                   DeviceName(args.late_ids.device()),
                                                   ", the stream on ", DeviceName(device)));
  }
  if (args.out.num_elements() == 0) return absl::OkStatus();
  if (device.kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return EmbeddingCuda(args, stream);
    return absl::UnimplementedError(
        absl::StrCat("embedding: not available on ", DeviceName(device)));
  }
  EmbeddingCpu(args, stream);
  return absl::OkStatus();
}

}  // namespace thinwire
