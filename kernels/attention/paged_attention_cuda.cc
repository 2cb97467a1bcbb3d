// The host's part of attention on a GPU: cuts a call into items and launches the kernels.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_device.h"
#include "kernels/core/copy.h"
#include "kernels/core/cuda_status.h"

namespace thinwire {
namespace {

// A sequence with more rows than this is a prompt.
constexpr int64_t kFewRows = 16;
// Blocks of rows beyond this are work enough without splits, whose partials would need memory.
constexpr int64_t kMostSplitBlocks = 8;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Keys of a split of `keys`: enough for a block of threads to be worth its start and its partial
// result, few enough for a single long sequence to spread over the GPU. Blocks for codes have twice
// as many threads as those for floats.
int64_t SplitKeys(int64_t keys, bool coded) {
  const int64_t split = std::clamp<int64_t>(CeilDiv(keys, 4 * 256) * 256, 512, kMaxSplitKeys);
  return coded ? split : split / 2;
}

// What both operators' arguments say of their sequences.
struct Sequences {
  absl::Span<const int32_t> token_offsets;
  absl::Span<const int32_t> context_lens;
  absl::Span<const int32_t> page_offsets;
  absl::Span<const int32_t> page_ids;
  absl::Span<const int32_t> exact_rows;
};

struct Plan {
  std::vector<AttentionItem> few;
  std::vector<AttentionItem> prompt;
  std::vector<AttentionCombine> combines;
  int32_t num_partials = 0;
};

Plan MakePlan(const AttentionCall& call, const Sequences& seqs, bool prompt_fits) {
  Plan plan;
  for (size_t s = 0; s < seqs.context_lens.size(); ++s) {
    const int64_t num_tokens = seqs.token_offsets[s + 1] - seqs.token_offsets[s];
    const int64_t num_rows = num_tokens * call.group;
    const int64_t before = seqs.context_lens[s] - num_tokens;
    const bool prompt = prompt_fits && num_rows > kFewRows;
    const int64_t most = prompt ? kPromptRows : kCudaRows;
    const int64_t num_blocks = CeilDiv(num_rows, most);
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int64_t first = b * most, count = std::min(most, num_rows - first);
      const int64_t end = before + (first + count - 1) / call.group + 1;
      const int64_t first_end = before + first / call.group + 1;
      int64_t begin = call.window > 0 ? std::max<int64_t>(0, first_end - call.window) : 0;
      begin = begin / 16 * 16;
      const int64_t split = prompt || num_blocks > kMostSplitBlocks
                                ? end - begin
                                : SplitKeys(end - begin, call.k.order != nullptr);
      const int64_t num_splits = CeilDiv(end - begin, split);
      AttentionItem item = {static_cast<int32_t>(s),
                            static_cast<int32_t>(first),
                            static_cast<int32_t>(count),
                            0,
                            0,
                            -1};
      if (num_splits > 1) {
        plan.combines.push_back({item.seq, item.first_row, item.num_rows, plan.num_partials,
                                 static_cast<int32_t>(num_splits)});
      }
      for (int64_t i = 0; i < num_splits; ++i) {
        item.key_begin = static_cast<int32_t>(begin + i * split);
        item.key_end = static_cast<int32_t>(std::min(end, begin + (i + 1) * split));
        if (num_splits > 1) item.partial = plan.num_partials++;
        (prompt ? plan.prompt : plan.few).push_back(item);
      }
    }
  }
  // The longest first, so that the last ones to run are short.
  std::stable_sort(plan.prompt.begin(), plan.prompt.end(),
                   [](const AttentionItem& a, const AttentionItem& b) {
                     return a.key_end - a.key_begin > b.key_end - b.key_begin;
                   });
  return plan;
}

// Ints for the device, one array after the other.
class Ints {
 public:
  template <typename T>
  int64_t Add(absl::Span<const T> values) {
    static_assert(sizeof(T) % sizeof(int32_t) == 0);
    const size_t at = ints_.size() + ints_.size() % 2;
    const size_t count = values.size() * sizeof(T) / sizeof(int32_t);
    ints_.resize(at + count);
    if (count > 0) std::memcpy(ints_.data() + at, values.data(), count * sizeof(int32_t));
    return static_cast<int64_t>(at);
  }
  int64_t size() const { return static_cast<int64_t>(ints_.size()); }
  int64_t size_bytes() const { return CeilDiv(size() * 4, 256) * 256; }

  // Pageable memory: the driver has taken a copy when this returns.
  absl::Status CopyTo(std::byte* to, Stream& stream) const {
    return Copy(ConstTensorView(ints_.data(), DType::kI32, {size()}),
                TensorView(to, DType::kI32, {size()}, stream.device()), stream);
  }

 private:
  std::vector<int32_t> ints_;
};

absl::Status Run(AttentionCall call, const Sequences& seqs, CodeWidths widths, Stream& stream) {
  const bool few_fit = FewRowsFit(call);
  if (call.head_dim > kMaxPlainHeadDim && !few_fit) {
    return absl::UnimplementedError(absl::StrCat("attention on ", DeviceName(stream.device()),
                                                 ": expected heads of at most ", kMaxPlainHeadDim,
                                                 " channels, found ", call.head_dim));
  }
  const Plan plan = MakePlan(call, seqs, PromptFits(call));
  Ints ints;
  const int64_t token_offsets = ints.Add(seqs.token_offsets);
  const int64_t context_lens = ints.Add(seqs.context_lens);
  const int64_t page_offsets = ints.Add(seqs.page_offsets);
  const int64_t exact_rows = ints.Add(seqs.exact_rows);
  const int64_t few = ints.Add(absl::MakeConstSpan(plan.few));
  const int64_t prompt = ints.Add(absl::MakeConstSpan(plan.prompt));
  const int64_t combines = ints.Add(absl::MakeConstSpan(plan.combines));
  const int64_t page_ids = ints.Add(seqs.page_ids);
  const int64_t partial_rows = int64_t{plan.num_partials} * call.num_kv_heads * kCudaRows;
  TW_ASSIGN_OR_RETURN(
      std::byte* const scratch,
      stream.Scratch(ints.size_bytes() + partial_rows * (2 + call.head_dim) * int64_t{4}));
  TW_RETURN_IF_ERROR(ints.CopyTo(scratch, stream));
  const auto* device_ints = reinterpret_cast<const int32_t*>(scratch);
  call.token_offsets = device_ints + token_offsets;
  call.context_lens = device_ints + context_lens;
  call.page_offsets = device_ints + page_offsets;
  call.page_ids = device_ints + page_ids;
  call.exact_rows = seqs.exact_rows.empty() ? nullptr : device_ints + exact_rows;
  call.partial_values = reinterpret_cast<float*>(scratch + ints.size_bytes());
  call.partial_weights = call.partial_values + partial_rows * call.head_dim;

  cudaStream_t const native = CudaStream(stream);
  if (!plan.prompt.empty()) {
    call.items = reinterpret_cast<const AttentionItem*>(device_ints + prompt);
    call.num_items = static_cast<int32_t>(plan.prompt.size());
    TW_RETURN_IF_CUDA_ERROR(LaunchPrompt(call, native), stream.device());
  }
  if (!plan.few.empty()) {
    call.items = reinterpret_cast<const AttentionItem*>(device_ints + few);
    call.num_items = static_cast<int32_t>(plan.few.size());
    if (few_fit) {
      TW_RETURN_IF_CUDA_ERROR(LaunchFewRows(call, widths, native), stream.device());
    } else {
      TW_RETURN_IF_CUDA_ERROR(LaunchPlain(call, native), stream.device());
    }
    call.combines = reinterpret_cast<const AttentionCombine*>(device_ints + combines);
    call.num_combines = static_cast<int32_t>(plan.combines.size());
    TW_RETURN_IF_CUDA_ERROR(LaunchCombine(call, native), stream.device());
  }
  return absl::OkStatus();
}

template <typename Args>
AttentionCall CallOf(const Args& args, int64_t head_dim) {
  AttentionCall call = {};
  call.q = args.q.raw();
  call.out = args.out.mutable_raw();
  call.q_stride = args.q.row_stride();
  call.out_stride = args.out.row_stride();
  call.q_dtype = args.q.dtype();
  call.out_dtype = args.out.dtype();
  call.head_dim = static_cast<int32_t>(head_dim);
  call.num_kv_heads = static_cast<int32_t>(args.k_pages.dim(1));
  call.group = static_cast<int32_t>(args.num_heads / args.k_pages.dim(1));
  call.page_size = static_cast<int32_t>(args.k_pages.dim(2));
  // A window longer than any context hides nothing.
  call.window = args.window > INT32_MAX ? 0 : static_cast<int32_t>(args.window);
  call.scale = args.scale;
  return call;
}

AttentionSide FloatSide(const ConstTensorView& pages) {
  AttentionSide side = {};
  side.pages = static_cast<const uint8_t*>(pages.raw());
  side.row_bytes = DTypeBytes(pages.dtype(), pages.dim(3));
  return side;
}

AttentionSide CodedSide(const ConstTensorView& pages, const KvCodes& codes,
                        const ConstTensorView& exact) {
  AttentionSide side = {};
  side.pages = static_cast<const uint8_t*>(pages.raw());
  side.row_bytes = codes.row_bytes();
  const int64_t positions = codes.num_heads() * codes.head_dim();
  const std::byte* const tables = codes.device_tables();
  side.order = reinterpret_cast<const int32_t*>(tables);
  side.step = reinterpret_cast<const float*>(tables + 4 * positions);
  side.zero = reinterpret_cast<const float*>(tables + 8 * positions);
  side.pieces = reinterpret_cast<const KvPiece*>(tables + 12 * positions);
  side.layouts = reinterpret_cast<const CudaRowLayout*>(
      tables + positions * int64_t{12 + kMaxKvPieces * sizeof(KvPiece)});
  side.exact = static_cast<const uint16_t*>(exact.raw());
  return side;
}

// See CodeWidths.
int Width(const KvCodes& codes) {
  if (codes.paired()) return 0;
  const int bits = codes.head(0).bits[0];
  for (int64_t h = 0; h < codes.num_heads(); ++h) {
    for (const uint8_t found : codes.head(h).bits) {
      if (found != bits) return -1;
    }
  }
  return bits;
}

absl::Status CheckCodesOn(const KvCodes& codes, Device device) {
  if (codes.device() == device) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("codes of K and V are on ",
                                                 DeviceName(codes.device()), ", the stream on ",
                                                 DeviceName(device)));
}

}  // namespace

absl::Status PagedAttentionCuda(const PagedAttentionArgs& args, Stream& stream) {
  AttentionCall call = CallOf(args, args.k_pages.dim(3));
  call.page_dtype = args.k_pages.dtype();
  call.k = FloatSide(args.k_pages);
  call.v = FloatSide(args.v_pages);
  return Run(call, {args.token_offsets, args.context_lens, args.page_offsets, args.page_ids, {}},
             {0, 0}, stream);
}

absl::Status CodedPagedAttentionCuda(const CodedPagedAttentionArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckCodesOn(*args.k_codes, stream.device()));
  TW_RETURN_IF_ERROR(CheckCodesOn(*args.v_codes, stream.device()));
  AttentionCall call = CallOf(args, args.k_codes->head_dim());
  call.k = CodedSide(args.k_pages, *args.k_codes, args.exact_k);
  call.v = CodedSide(args.v_pages, *args.v_codes, args.exact_v);
  return Run(
      call,
      {args.token_offsets, args.context_lens, args.page_offsets, args.page_ids, args.exact_rows},
      {Width(*args.k_codes), Width(*args.v_codes)}, stream);
}

absl::Status KvWriteCuda(const KvWriteArgs& args, Stream& stream) {
  const auto num_tokens = static_cast<int64_t>(args.slots.size());
  TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(8 * num_tokens));
  TW_RETURN_IF_ERROR(Copy(ConstTensorView(args.slots.data(), DType::kI64, {num_tokens}),
                          TensorView(scratch, DType::kI64, {num_tokens}, stream.device()), stream));
  KvWriteCall call = {};
  call.k = args.k.raw();
  call.v = args.v.raw();
  call.k_stride = args.k.row_stride();
  call.v_stride = args.v.row_stride();
  call.k_dtype = args.k.dtype();
  call.v_dtype = args.v.dtype();
  call.num_tokens = static_cast<int32_t>(num_tokens);
  call.num_kv_heads = static_cast<int32_t>(args.k_pages.dim(1));
  call.head_dim = static_cast<int32_t>(args.k_pages.dim(3));
  call.page_size = static_cast<int32_t>(args.k_pages.dim(2));
  call.slots = reinterpret_cast<const int64_t*>(scratch);
  call.k_side = FloatSide(args.k_pages);
  call.v_side = FloatSide(args.v_pages);
  TW_RETURN_IF_CUDA_ERROR(LaunchKvWrite(call, CudaStream(stream)), stream.device());
  return absl::OkStatus();
}

absl::StatusOr<int64_t> CodedKvWriteCuda(const CodedKvWriteArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckCodesOn(*args.k_codes, stream.device()));
  TW_RETURN_IF_ERROR(CheckCodesOn(*args.v_codes, stream.device()));
  const auto num_tokens = static_cast<int64_t>(args.slots.size());
  // The index of the first wrong value, slots, exact rows.
  std::vector<int64_t> ints = {kNoWrongValue};
  ints.insert(ints.end(), args.slots.begin(), args.slots.end());
  ints.resize(ints.size() + (args.exact_rows.size() + 1) / 2);
  if (!args.exact_rows.empty()) {
    std::memcpy(ints.data() + 1 + num_tokens, args.exact_rows.data(), 4 * args.exact_rows.size());
  }
  const auto num_ints = static_cast<int64_t>(ints.size());
  TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(8 * num_ints));
  TW_RETURN_IF_ERROR(Copy(ConstTensorView(ints.data(), DType::kI64, {num_ints}),
                          TensorView(scratch, DType::kI64, {num_ints}, stream.device()), stream));
  KvWriteCall call = {};
  call.k = args.k.raw();
  call.v = args.v.raw();
  call.k_stride = args.k.row_stride();
  call.v_stride = args.v.row_stride();
  call.k_dtype = args.k.dtype();
  call.v_dtype = args.v.dtype();
  call.num_tokens = static_cast<int32_t>(num_tokens);
  call.num_kv_heads = static_cast<int32_t>(args.k_codes->num_heads());
  call.head_dim = static_cast<int32_t>(args.k_codes->head_dim());
  call.page_size = static_cast<int32_t>(args.k_pages.dim(2));
  const auto* device_ints = reinterpret_cast<const int64_t*>(scratch);
  call.slots = device_ints + 1;
  if (!args.exact_rows.empty()) {
    call.exact_rows = reinterpret_cast<const int32_t*>(device_ints + 1 + num_tokens);
  }
  call.k_side = CodedSide(args.k_pages, *args.k_codes, args.exact_k);
  call.v_side = CodedSide(args.v_pages, *args.v_codes, args.exact_v);
  const bool waits = args.first_wrong.empty();
  call.first_wrong = static_cast<unsigned long long*>(waits ? static_cast<void*>(scratch)
                                                            : args.first_wrong.mutable_raw());
  TW_RETURN_IF_CUDA_ERROR(LaunchCodedKvWrite(call, CudaStream(stream)), stream.device());
  if (!waits) return kNoWrongValue;
  int64_t wrong = kNoWrongValue;
  TW_RETURN_IF_ERROR(Copy(ConstTensorView(scratch, DType::kI64, {1}, stream.device()),
                          TensorView(&wrong, DType::kI64, {1}), stream));
  TW_RETURN_IF_ERROR(stream.Synchronize());
  return wrong;
}

namespace {

CudaRowLayout RowLayout(const KvCodes& codes, int64_t h) {
  CudaRowLayout layout = {};
  if (!codes.paired()) return layout;
  const std::vector<uint8_t>& bits = codes.head(h).bits;
  int32_t bit = 0;
  for (size_t k = 0; 2 * k < bits.size(); ++k) {
    const uint32_t low = bits[2 * k], high = bits[2 * k + 1];
    layout.first_bit[k] = bit;
    layout.planes[k] = {low + high, low, ((1u << low) - 1u) * 0x10001u,
                        ((1u << high) - 1u) * 0x10001u};
    bit += static_cast<int32_t>(kKvUnit * (low + high));
  }
  return layout;
}

}  // namespace

absl::StatusOr<Buffer> KvTablesOnDevice(const KvCodes& codes) {
  const int64_t positions = codes.num_heads() * codes.head_dim();
  std::vector<int32_t> order;
  std::vector<float> step, zero;
  std::vector<KvPiece> pieces;
  std::vector<CudaRowLayout> layouts;
  for (int64_t h = 0; h < codes.num_heads(); ++h) {
    const KvHeadCodes& head = codes.head(h);
    order.insert(order.end(), head.order.begin(), head.order.end());
    step.insert(step.end(), head.step.begin(), head.step.end());
    zero.insert(zero.end(), head.zero.begin(), head.zero.end());
    layouts.push_back(RowLayout(codes, h));
    for (int64_t j = 0; j < codes.head_dim(); ++j) {
      for (const KvPiece& piece : codes.pieces(h, j)) pieces.push_back(piece);
    }
  }
  const Device device = codes.device();
  TW_ASSIGN_OR_RETURN(
      Buffer tables,
      Buffer::Allocate(positions * int64_t{12 + kMaxKvPieces * sizeof(KvPiece)} +
                           static_cast<int64_t>(layouts.size() * sizeof(CudaRowLayout)),
                       device));
  std::byte* to = tables.data();
  const auto copy = [&](const void* from, size_t bytes) {
    const cudaError_t error = cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice);
    to += bytes;
    return CudaStatus(error, "cudaMemcpy", device);
  };
  TW_RETURN_IF_ERROR(copy(order.data(), order.size() * sizeof(int32_t)));
  TW_RETURN_IF_ERROR(copy(step.data(), step.size() * sizeof(float)));
  TW_RETURN_IF_ERROR(copy(zero.data(), zero.size() * sizeof(float)));
  TW_RETURN_IF_ERROR(copy(pieces.data(), pieces.size() * sizeof(KvPiece)));
  TW_RETURN_IF_ERROR(copy(layouts.data(), layouts.size() * sizeof(CudaRowLayout)));
  return tables;
}

}  // namespace thinwire
