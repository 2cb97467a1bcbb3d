#include "kernels/attention/coded_attention.h"

#include "absl/strings/str_cat.h"
#include "kernels/attention/attention_device.h"
#include "kernels/attention/coded_attention_cpu.h"
#include "kernels/attention/paged_sequences.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status CheckTensors(const CodedPagedAttentionArgs& args, Device device) {
  const ConstTensorView &q = args.q, &out = args.out, &k = args.k_pages, &v = args.v_pages;
  const auto invalid = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        "coded_paged_attention: ", what, ": q ", q.DebugString(), ", out ", out.DebugString(),
        ", k_pages ", k.DebugString(), ", v_pages ", v.DebugString(), ", exact_k ",
        args.exact_k.DebugString(), ", exact_v ", args.exact_v.DebugString(), ", ", args.num_heads,
        " heads, window ", args.window));
  };
  if (args.k_codes == nullptr || args.v_codes == nullptr) return invalid("no codes");
  TW_RETURN_IF_ERROR(CheckCodedPages("coded_paged_attention", *args.k_codes, *args.v_codes, k, v));
  TW_RETURN_IF_ERROR(CheckExactRows("coded_paged_attention", *args.k_codes, args.exact_rows,
                                    args.context_lens.size(), args.exact_k, args.exact_v));
  if (args.num_heads < 1 || args.num_heads % k.dim(1) != 0) {
    return invalid("num_heads must be a multiple of num_kv_heads");
  }
  if (!IsFloat(q.dtype()) || !IsFloat(out.dtype())) {
    return invalid("expected q and out of fp32, fp16 or bf16");
  }
  if (q.rank() != 2 || out.rank() != 2 || q.dim(1) != args.num_heads * args.k_codes->head_dim() ||
      out.dim(1) != q.dim(1) || out.dim(0) != q.dim(0)) {
    return invalid("q and out must be [num_tokens, num_heads * head_dim]");
  }
  if (args.window < 0) return invalid("negative window");
  for (const ConstTensorView& view : {q, out, k, v, args.exact_k, args.exact_v}) {
    if (!view.empty() && view.device() != device) {
      return absl::InvalidArgumentError(absl::StrCat("coded_paged_attention: a tensor is on ",
                                                     DeviceName(view.device()), ", the stream on ",
                                                     DeviceName(device)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCodedPages(absl::string_view op, const KvCodes& k_codes, const KvCodes& v_codes,
                             const ConstTensorView& k_pages, const ConstTensorView& v_pages) {
  if (v_codes.num_heads() != k_codes.num_heads() || v_codes.head_dim() != k_codes.head_dim()) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": codes of K for ", k_codes.num_heads(), " heads of ", k_codes.head_dim(),
                     " channels, of V for ", v_codes.num_heads(), " of ", v_codes.head_dim()));
  }
  const auto fits = [&](const ConstTensorView& pages, const KvCodes& codes) {
    return pages.rank() == 4 && pages.contiguous() && pages.dtype() == DType::kU8 &&
           pages.dim(1) == codes.num_heads() && pages.dim(2) >= 1 &&
           pages.dim(3) == codes.row_bytes();
  };
  if (!fits(k_pages, k_codes) || !fits(v_pages, v_codes) || k_pages.dim(0) != v_pages.dim(0) ||
      k_pages.dim(2) != v_pages.dim(2)) {
    return absl::InvalidArgumentError(absl::StrCat(
        op, ": k_pages ", k_pages.DebugString(), ", v_pages ", v_pages.DebugString(),
        ": expected contiguous uint8 [num_pages, ", k_codes.num_heads(), ", page_size, ",
        k_codes.row_bytes(), "] and the same with rows of ", v_codes.row_bytes(), " bytes"));
  }
  return absl::OkStatus();
}

absl::Status CheckExactRows(absl::string_view op, const KvCodes& codes,
                            absl::Span<const int32_t> rows, size_t count,
                            const ConstTensorView& exact_k, const ConstTensorView& exact_v) {
  if (!rows.empty() && rows.size() != count) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": ", rows.size(), " exact_rows: expected ", count, " or none"));
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] == -1) continue;
    for (const ConstTensorView& exact : {exact_k, exact_v}) {
      if (exact.rank() != 3 || !exact.contiguous() || exact.dtype() != DType::kF16 ||
          exact.dim(1) != codes.num_heads() || exact.dim(2) != codes.head_dim()) {
        return absl::InvalidArgumentError(
            absl::StrCat(op, ": exact_k ", exact_k.DebugString(), ", exact_v ",
                         exact_v.DebugString(), ": expected contiguous fp16 [num_rows, ",
                         codes.num_heads(), ", ", codes.head_dim(), "]"));
      }
      if (rows[i] < 0 || rows[i] >= exact.dim(0)) {
        return absl::InvalidArgumentError(absl::StrCat(op, ": entry ", i, " of exact_rows is ",
                                                       rows[i], ": expected -1 to ",
                                                       exact.dim(0) - 1));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CodedPagedAttention(const CodedPagedAttentionArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckTensors(args, stream.device()));
  TW_RETURN_IF_ERROR(
      CheckSequences({args.q.dim(0), args.token_offsets, args.context_lens, args.page_offsets,
                      args.page_ids, args.k_pages.dim(0), args.k_pages.dim(2)}));
  if (args.q.dim(0) == 0) return absl::OkStatus();
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda) {
      return CodedPagedAttentionCuda(args, stream);
    }
  }
  if (stream.device().kind != DeviceKind::kCpu) {
    return absl::UnimplementedError(
        absl::StrCat("coded_paged_attention: not available on ", DeviceName(stream.device())));
  }
  return CodedPagedAttentionCpu(args, stream);
}

}  // namespace thinwire
