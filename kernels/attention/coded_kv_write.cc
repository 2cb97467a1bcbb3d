#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/attention/attention_device.h"
#include "kernels/attention/coded_attention_cpu.h"
#include "kernels/convert/convert.h"
#include "kernels/core/float16.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

// Fewer values than this are not worth waking a thread.
constexpr int64_t kValuesPerThread = 8192;

absl::Status CheckArguments(const CodedKvWriteArgs& args, Device device) {
  const ConstTensorView &k = args.k, &v = args.v;
  const auto invalid = [&](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("coded_kv_write: ", what, ": k ", k.DebugString(), ", v ", v.DebugString(),
                     ", ", args.slots.size(), " slots, k_pages ", args.k_pages.DebugString(),
                     ", v_pages ", args.v_pages.DebugString()));
  };
  if (args.k_codes == nullptr || args.v_codes == nullptr) return invalid("no codes");
  TW_RETURN_IF_ERROR(
      CheckCodedPages("coded_kv_write", *args.k_codes, *args.v_codes, args.k_pages, args.v_pages));
  TW_RETURN_IF_ERROR(CheckExactRows("coded_kv_write", *args.k_codes, args.exact_rows,
                                    args.slots.size(), args.exact_k, args.exact_v));
  for (const ConstTensorView& rows : {k, v}) {
    if (!IsFloat(rows.dtype())) return invalid("expected k and v of fp32, fp16 or bf16");
    if (rows.rank() != 2 || rows.dim(1) != args.k_codes->num_heads() * args.k_codes->head_dim()) {
      return invalid("k and v must be [num_tokens, num_kv_heads * head_dim]");
    }
    if (rows.dim(0) != static_cast<int64_t>(args.slots.size())) {
      return invalid("expected one slot a token");
    }
  }
  for (const ConstTensorView& view :
       {k, v, ConstTensorView(args.k_pages), ConstTensorView(args.v_pages),
        ConstTensorView(args.exact_k), ConstTensorView(args.exact_v)}) {
    if (!view.empty() && view.device() != device) {
      return absl::InvalidArgumentError(absl::StrCat("coded_kv_write: a tensor is on ",
                                                     DeviceName(view.device()), ", the stream on ",
                                                     DeviceName(device)));
    }
  }
  const int64_t num_slots = args.k_pages.dim(0) * args.k_pages.dim(2);
  for (size_t t = 0; t < args.slots.size(); ++t) {
    if (args.slots[t] < 0 || args.slots[t] >= num_slots) {
      return absl::InvalidArgumentError(absl::StrCat("coded_kv_write: slot ", args.slots[t],
                                                     " of token ", t, ": expected 0 to ",
                                                     num_slots - 1));
    }
  }
  return absl::OkStatus();
}

// K or V of a call.
struct Side {
  const ConstTensorView& rows;
  const KvCodes& codes;
  const TensorView& pages;
  const TensorView& exact;
};

// Writes token t; wide: scratch of one token. Returns the index of the first value that cannot be
// stored, or -1.
int64_t WriteToken(const CodedKvWriteArgs& args, const Side& side, int64_t t, float* wide) {
  const int64_t width = side.rows.dim(1);
  const int64_t page_size = side.pages.dim(2);
  const int64_t head_stride = page_size * side.pages.dim(3);
  const auto* from = static_cast<const std::byte*>(side.rows.raw()) +
                     DTypeBytes(side.rows.dtype(), t * side.rows.row_stride());
  ConvertToFloat(from, side.rows.dtype(), wide, width);
  auto* to = side.pages.mutable_data<uint8_t>();
  const int64_t page = args.slots[t] / page_size;
  const int64_t row = args.slots[t] % page_size;
  const int64_t wrong = EncodeToken(
      side.codes, wide, to + page * side.codes.num_heads() * head_stride + row * side.pages.dim(3),
      head_stride);
  if (wrong >= 0 || args.exact_rows.empty() || args.exact_rows[t] < 0) return wrong;
  Half* exact = side.exact.mutable_data<Half>() + args.exact_rows[t] * width;
  ConvertFromFloat(wide, exact, DType::kF16, width);
  for (int64_t i = 0; i < width; ++i) {
    if ((exact[i].bits & 0x7c00u) == 0x7c00u) return i;
  }
  return -1;
}

}  // namespace

absl::Status CodedKvWrite(const CodedKvWriteArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckArguments(args, stream.device()));
  if (args.slots.empty()) return absl::OkStatus();
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda) {
      TW_ASSIGN_OR_RETURN(const int64_t wrong, CodedKvWriteCuda(args, stream));
      return CodedKvWriteError(args, wrong);
    }
  }
  if (stream.device().kind != DeviceKind::kCpu) {
    return absl::UnimplementedError(
        absl::StrCat("coded_kv_write: not available on ", DeviceName(stream.device())));
  }
  const Side sides[] = {{args.k, *args.k_codes, args.k_pages, args.exact_k},
                        {args.v, *args.v_codes, args.v_pages, args.exact_v}};
  const int64_t width = args.k.dim(1);
  const auto num_tokens = static_cast<int64_t>(args.slots.size());
  ThreadPool& pool = stream.pool();
  const int64_t wide_bytes = DTypeBytes(DType::kF32, PaddedFloats(width));
  TW_ASSIGN_OR_RETURN(std::byte * scratch, stream.Scratch(pool.num_threads() * wide_bytes));
  // The first value in the order of tokens, K before V, that cannot be stored.
  std::atomic<int64_t> first_wrong = 2 * width * num_tokens;
  pool.ParallelFor(
      num_tokens, std::max<int64_t>(1, kValuesPerThread / (2 * width)),
      [&](int64_t begin, int64_t end) {
        auto* wide = reinterpret_cast<float*>(scratch + ThreadPool::CurrentThread() * wide_bytes);
        for (int64_t t = begin; t < end; ++t) {
          for (int64_t i = 0; i < 2; ++i) {
            const int64_t wrong = WriteToken(args, sides[i], t, wide);
            if (wrong < 0) continue;
            const int64_t index = (2 * t + i) * width + wrong;
            int64_t known = first_wrong;
            while (index < known && !first_wrong.compare_exchange_weak(known, index)) {
            }
            return;
          }
        }
      });
  const int64_t wrong = first_wrong;
  return CodedKvWriteError(args, wrong == 2 * width * num_tokens ? kNoWrongValue : wrong);
}

absl::Status CodedKvWriteError(const CodedKvWriteArgs& args, int64_t wrong) {
  if (wrong == kNoWrongValue) return absl::OkStatus();
  const int64_t width = args.k.dim(1);
  const int64_t t = wrong / (2 * width), column = wrong % width;
  const int64_t head_dim = args.k_codes->head_dim();
  const bool is_k = wrong / width % 2 == 0;
  const ConstTensorView& rows = is_k ? args.k : args.v;
  std::string value = "NaN, infinite or, in an exact row, more than fp16 holds";
  if (rows.device().kind == DeviceKind::kCpu) {
    const auto* element = static_cast<const std::byte*>(rows.raw()) +
                          DTypeBytes(rows.dtype(), t * rows.row_stride() + column);
    float x = 0.0f;
    ConvertToFloat(element, rows.dtype(), &x, 1);
    value = absl::StrCat(
        x, x - x == 0.0f ? ": more than fp16, of an exact row, holds" : ": expected finite");
  }
  return absl::InvalidArgumentError(absl::StrCat("coded_kv_write: ", is_k ? "K" : "V", " of token ",
                                                 t, ", KV head ", column / head_dim, ", channel ",
                                                 column % head_dim, " is ", value));
}

}  // namespace thinwire
