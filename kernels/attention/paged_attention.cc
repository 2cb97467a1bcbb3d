#include "kernels/attention/paged_attention.h"

#include "absl/strings/str_cat.h"
#include "kernels/attention/attention_device.h"
#include "kernels/attention/paged_attention_cpu.h"
#include "kernels/attention/paged_sequences.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status CheckTensors(const PagedAttentionArgs& args, Device device) {
  const ConstTensorView &q = args.q, &out = args.out, &k = args.k_pages, &v = args.v_pages;
  const auto invalid = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("paged_attention: ", what, ": q ", q.DebugString(), ", out ",
                     out.DebugString(), ", k_pages ", k.DebugString(), ", v_pages ",
                     v.DebugString(), ", ", args.num_heads, " heads, window ", args.window));
  };
  if (k.rank() != 4 || v.rank() != 4 || !k.contiguous() || !v.contiguous()) {
    return invalid("expected contiguous pages [num_pages, num_kv_heads, page_size, head_dim]");
  }
  for (int d = 0; d < 4; ++d) {
    if (k.dim(d) != v.dim(d)) return invalid("k_pages and v_pages differ");
  }
  if (k.dim(1) < 1 || k.dim(2) < 1 || k.dim(3) < 1) return invalid("pages hold nothing");
  if (!IsFloat(k.dtype())) return invalid("expected fp32, fp16 or bf16");
  if (v.dtype() != k.dtype() || q.dtype() != k.dtype() || out.dtype() != k.dtype()) {
    return invalid("the dtypes differ");
  }
  if (args.num_heads < 1 || args.num_heads % k.dim(1) != 0) {
    return invalid("num_heads must be a multiple of num_kv_heads");
  }
  if (q.rank() != 2 || out.rank() != 2 || q.dim(1) != args.num_heads * k.dim(3) ||
      out.dim(1) != q.dim(1) || out.dim(0) != q.dim(0)) {
    return invalid("q and out must be [num_tokens, num_heads * head_dim]");
  }
  if (args.window < 0) return invalid("negative window");
  for (const ConstTensorView& view : {q, out, k, v}) {
    if (!view.empty() && view.device() != device) {
      return absl::InvalidArgumentError(absl::StrCat("paged_attention: a tensor is on ",
                                                     DeviceName(view.device()), ", the stream on ",
                                                     DeviceName(device)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PagedAttention(const PagedAttentionArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckTensors(args, stream.device()));
  TW_RETURN_IF_ERROR(
      CheckSequences({args.q.dim(0), args.token_offsets, args.context_lens, args.page_offsets,
                      args.page_ids, args.k_pages.dim(0), args.k_pages.dim(2)}));
  if (args.q.dim(0) == 0) return absl::OkStatus();
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda) {
      return PagedAttentionCuda(args, stream);
    }
  }
  if (stream.device().kind != DeviceKind::kCpu) {
    return absl::UnimplementedError(
        absl::StrCat("paged_attention: not available on ", DeviceName(stream.device())));
  }
  return PagedAttentionCpu(args, stream);
}

}  // namespace thinwire
