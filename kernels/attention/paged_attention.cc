#include "kernels/attention/paged_attention.h"

#include "absl/strings/str_cat.h"
#include "kernels/attention/paged_attention_cpu.h"
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

absl::Status CheckSequences(const PagedAttentionArgs& args) {
  const size_t num_seqs = args.context_lens.size();
  if (args.token_offsets.size() != num_seqs + 1 || args.page_offsets.size() != num_seqs + 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "paged_attention: ", num_seqs, " context_lens, ", args.token_offsets.size(),
        " token_offsets, ", args.page_offsets.size(), " page_offsets: expected one more of each"));
  }
  if (args.token_offsets.front() != 0 || args.token_offsets.back() != args.q.dim(0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("paged_attention: token_offsets from ", args.token_offsets.front(), " to ",
                     args.token_offsets.back(), ": expected 0 to ", args.q.dim(0)));
  }
  const int64_t page_size = args.k_pages.dim(2);
  for (size_t s = 0; s < num_seqs; ++s) {
    const int64_t num_tokens = int64_t{args.token_offsets[s + 1]} - args.token_offsets[s];
    const int64_t context = args.context_lens[s];
    if (num_tokens < 1 || context < num_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("paged_attention: sequence ", s, " has ",
                                                     num_tokens, " query tokens in a context of ",
                                                     context));
    }
    const int64_t begin = args.page_offsets[s];
    const int64_t end = args.page_offsets[s + 1];
    const int64_t needed = (context + page_size - 1) / page_size;
    if (begin < 0 || end - begin < needed || end > static_cast<int64_t>(args.page_ids.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "paged_attention: sequence ", s, " has page_ids [", begin, ", ", end, ") of ",
          args.page_ids.size(), ": expected ", needed, " pages for a context of ", context));
    }
    for (int64_t i = begin; i < begin + needed; ++i) {
      if (args.page_ids[i] < 0 || args.page_ids[i] >= args.k_pages.dim(0)) {
        return absl::InvalidArgumentError(
            absl::StrCat("paged_attention: sequence ", s, " has page ", args.page_ids[i],
                         ": expected 0 to ", args.k_pages.dim(0) - 1));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PagedAttention(const PagedAttentionArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckTensors(args, stream.device()));
  TW_RETURN_IF_ERROR(CheckSequences(args));
  if (args.q.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    return absl::UnimplementedError(
        absl::StrCat("paged_attention: not available on ", DeviceName(stream.device())));
  }
  return PagedAttentionCpu(args, stream);
}

}  // namespace thinwire
