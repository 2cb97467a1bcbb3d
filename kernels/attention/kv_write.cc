#include <algorithm>
#include <cstddef>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/attention/attention_device.h"
#include "kernels/attention/paged_attention.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/rope/rope_internal.h"

namespace thinwire {
namespace {

// Less than this is not worth waking a thread.
constexpr int64_t kBytesPerThread = 65536;

absl::Status CheckArguments(const KvWriteArgs& args, Device device) {
  const ConstTensorView &k = args.k, &v = args.v, &pages = args.k_pages;
  const auto invalid = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("kv_write: ", what, ": k ", k.DebugString(),
                                                   ", v ", v.DebugString(), ", ", args.slots.size(),
                                                   " slots, k_pages ", args.k_pages.DebugString(),
                                                   ", v_pages ", args.v_pages.DebugString()));
  };
  if (pages.rank() != 4 || args.v_pages.rank() != 4 || !pages.contiguous() ||
      !args.v_pages.contiguous()) {
    return invalid("expected contiguous [num_pages, num_kv_heads, page_size, head_dim]");
  }
  for (int d = 0; d < 4; ++d) {
    if (args.v_pages.dim(d) != pages.dim(d)) return invalid("k_pages and v_pages differ");
  }
  if (!IsFloat(pages.dtype())) return invalid("expected fp32, fp16 or bf16");
  for (const ConstTensorView& view : {k, v, ConstTensorView(args.v_pages)}) {
    if (view.dtype() != pages.dtype()) return invalid("the dtypes differ");
  }
  for (const ConstTensorView& rows : {k, v}) {
    if (rows.rank() != 2 || rows.dim(1) != pages.dim(1) * pages.dim(3)) {
      return invalid("k and v must be [num_tokens, num_kv_heads * head_dim]");
    }
    if (rows.dim(0) != static_cast<int64_t>(args.slots.size())) {
      return invalid("expected one slot a token");
    }
  }
  for (const ConstTensorView& view : {k, v, pages, ConstTensorView(args.v_pages)}) {
    if (!view.empty() && view.device() != device) {
      return absl::InvalidArgumentError(absl::StrCat("kv_write: a tensor is on ",
                                                     DeviceName(view.device()), ", the stream on ",
                                                     DeviceName(device)));
    }
  }
  const int64_t num_slots = pages.dim(0) * pages.dim(2);
  for (size_t t = 0; t < args.slots.size(); ++t) {
    if (args.slots[t] < 0 || args.slots[t] >= num_slots) {
      return absl::InvalidArgumentError(absl::StrCat("kv_write: slot ", args.slots[t], " of token ",
                                                     t, ": expected 0 to ", num_slots - 1));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RotateAndWriteKv(const RopeArgs& rope, const KvWriteArgs& write, Stream& stream) {
  const int64_t before = rope.x.dim(1) - write.k.dim(1);
  if (before < 0 || rope.head_dim != write.k_pages.dim(3) || rope.x.dim(0) != write.k.dim(0) ||
      rope.x.Columns(before, write.k.dim(1)).raw() != write.k.raw()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rotation and kv_write: expected keys in the last columns of x, found x ",
                     rope.x.DebugString(), ", k ", write.k.DebugString(), ", k_pages ",
                     write.k_pages.DebugString(), ", head_dim ", rope.head_dim));
  }
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda && !write.slots.empty() &&
        RotatesWithKvWrite(rope, write)) {
      TW_RETURN_IF_ERROR(CheckRopeArgs(rope));
      TW_RETURN_IF_ERROR(CheckArguments(write, stream.device()));
      return RotateAndWriteKvCuda(rope, write, stream);
    }
  }
  TW_RETURN_IF_ERROR(Rope(rope, stream));
  return KvWrite(write, stream);
}

absl::Status KvWrite(const KvWriteArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckArguments(args, stream.device()));
  if (args.slots.empty()) return absl::OkStatus();
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda) return KvWriteCuda(args, stream);
  }
  if (stream.device().kind != DeviceKind::kCpu) {
    return absl::UnimplementedError(
        absl::StrCat("kv_write: not available on ", DeviceName(stream.device())));
  }
  const DType dtype = args.k.dtype();
  const int64_t num_heads = args.k_pages.dim(1);
  const int64_t page_size = args.k_pages.dim(2);
  const int64_t row_bytes = DTypeBytes(dtype, args.k_pages.dim(3));
  const auto write_token = [&](const ConstTensorView& rows, const TensorView& pages, int64_t t) {
    const auto* from =
        static_cast<const std::byte*>(rows.raw()) + DTypeBytes(dtype, t * rows.row_stride());
    auto* to = static_cast<std::byte*>(pages.mutable_raw());
    const int64_t page = args.slots[t] / page_size;
    const int64_t row = args.slots[t] % page_size;
    for (int64_t h = 0; h < num_heads; ++h) {
      std::memcpy(to + ((page * num_heads + h) * page_size + row) * row_bytes, from + h * row_bytes,
                  static_cast<size_t>(row_bytes));
    }
  };
  const int64_t grain = std::max<int64_t>(1, kBytesPerThread / (2 * num_heads * row_bytes + 1));
  stream.pool().ParallelFor(static_cast<int64_t>(args.slots.size()), grain,
                            [&](int64_t begin, int64_t end) {
                              for (int64_t t = begin; t < end; ++t) {
                                write_token(args.k, args.k_pages, t);
                                write_token(args.v, args.v_pages, t);
                              }
                            });
  return absl::OkStatus();
}

}  // namespace thinwire
