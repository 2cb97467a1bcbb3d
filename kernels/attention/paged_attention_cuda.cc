// The host's part of attention on a GPU: cuts a call into items and launches the kernels.
#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/attention/attention_cuda.h"
#include "kernels/attention/attention_device.h"
#include "kernels/attention/invariant_attention.h"
#include "kernels/attention/invariant_attention_cuda.h"
#include "kernels/attention/step_sequences.h"
#include "kernels/core/copy.h"
#include "kernels/core/cuda_status.h"

namespace thinwire {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What both operators' arguments say of their sequences.
struct Sequences {
  absl::Span<const int32_t> token_offsets;
  absl::Span<const int32_t> context_lens;
  absl::Span<const int32_t> page_offsets;
  absl::Span<const int32_t> page_ids;
  absl::Span<const int32_t> exact_rows;
};

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

// step: null, or the same sequences on the device.
absl::Status Run(AttentionCall call, const Sequences& seqs, const StepSequences* step,
                 CodeWidths widths, bool batch_invariant, Stream& stream) {
  const bool few_fit = !batch_invariant && FewRowsFit(call);
  if (call.head_dim > kMaxPlainHeadDim && !few_fit) {
    return absl::UnimplementedError(absl::StrCat("attention on ", DeviceName(stream.device()),
                                                 ": expected heads of at most ", kMaxPlainHeadDim,
                                                 " channels, found ", call.head_dim));
  }
  const cudaStream_t native = CudaStream(stream);
  const auto launch = [&]() -> absl::Status {
    if (call.num_prompt_items > 0) {
      TW_RETURN_IF_CUDA_ERROR(LaunchPrompt(call, native), stream.device());
    }
    if (call.num_items == 0) return absl::OkStatus();
    if (batch_invariant) {
      TW_RETURN_IF_CUDA_ERROR(LaunchInvariant(call, native), stream.device());
      return absl::OkStatus();
    }
    // Where there are two blocks of threads for each multiprocessor at most, and they do wait.
    constexpr int64_t kFewBlocks = 264, kBytesAhead = int64_t{64} << 10;
    const int64_t num_blocks = int64_t{call.num_items} * call.num_kv_heads;
    const bool few_blocks = num_blocks <= kFewBlocks;
    call.keys_ahead =
        few_blocks ? static_cast<int32_t>(kBytesAhead / (call.k.row_bytes + call.v.row_bytes)) : 0;
    call.q_in_vectors = call.q_dtype == call.page_dtype && call.q_stride % 8 == 0 &&
                        reinterpret_cast<uintptr_t>(call.q) % 16 == 0;
    call.wide_blocks = num_blocks <= kFewBlocks / 2;
    if (few_fit) {
      TW_RETURN_IF_CUDA_ERROR(LaunchFewRows(call, widths, native), stream.device());
    } else {
      TW_RETURN_IF_CUDA_ERROR(LaunchPlain(call, native), stream.device());
    }
    TW_RETURN_IF_CUDA_ERROR(LaunchCombine(call, native), stream.device());
    return absl::OkStatus();
  };
  const auto partial_bytes = [&](int64_t num_partials) {
    return num_partials * call.num_kv_heads * kCudaRows * (2 + call.head_dim) * int64_t{4};
  };
  const auto set_partials = [&](std::byte* memory, int64_t num_partials) {
    call.partial_values = reinterpret_cast<float*>(memory);
    call.partial_weights =
        call.partial_values + num_partials * call.num_kv_heads * kCudaRows * call.head_dim;
  };
  if (step != nullptr) {
    const StepSequences::Layout& layout = step->layout();
    const StepSequences::Addresses& there = step->addresses();
    // No more than items.
    const int64_t num_partials = layout.num_combines > 0 ? layout.num_few : 0;
    TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(partial_bytes(num_partials)));
    set_partials(scratch, num_partials);
    call.token_offsets = there.token_offsets;
    call.context_lens = there.context_lens;
    call.page_offsets = there.page_offsets;
    call.page_ids = there.page_ids;
    call.exact_rows = seqs.exact_rows.empty() ? nullptr : there.exact_rows_of_seqs;
    call.items = static_cast<const AttentionItem*>(there.few);
    call.num_items = static_cast<int32_t>(layout.num_few);
    call.prompt_items = static_cast<const AttentionItem*>(there.prompt);
    call.num_prompt_items = static_cast<int32_t>(layout.num_prompt);
    call.combines = static_cast<const AttentionCombine*>(there.combines);
    call.num_combines = static_cast<int32_t>(layout.num_combines);
    return launch();
  }
  const AttentionItems items = (batch_invariant ? CutIntoInvariantItems : CutIntoItems)(
      {.group = call.group,
       .num_kv_heads = call.num_kv_heads,
       .window = call.window,
       .coded = call.k.order != nullptr,
       .has_prompts = PromptFits(call)},
      seqs.token_offsets, seqs.context_lens);
  Ints ints;
  const int64_t token_offsets = ints.Add(seqs.token_offsets);
  const int64_t context_lens = ints.Add(seqs.context_lens);
  const int64_t page_offsets = ints.Add(seqs.page_offsets);
  const int64_t exact_rows = ints.Add(seqs.exact_rows);
  const int64_t few = ints.Add(absl::MakeConstSpan(items.few));
  const int64_t prompt = ints.Add(absl::MakeConstSpan(items.prompt));
  const int64_t combines = ints.Add(absl::MakeConstSpan(items.combines));
  const int64_t page_ids = ints.Add(seqs.page_ids);
  TW_ASSIGN_OR_RETURN(std::byte* const scratch,
                      stream.Scratch(ints.size_bytes() + partial_bytes(items.num_partials)));
  TW_RETURN_IF_ERROR(ints.CopyTo(scratch, stream));
  set_partials(scratch + ints.size_bytes(), items.num_partials);
  const auto* device_ints = reinterpret_cast<const int32_t*>(scratch);
  call.token_offsets = device_ints + token_offsets;
  call.context_lens = device_ints + context_lens;
  call.page_offsets = device_ints + page_offsets;
  call.page_ids = device_ints + page_ids;
  call.exact_rows = seqs.exact_rows.empty() ? nullptr : device_ints + exact_rows;
  call.items = reinterpret_cast<const AttentionItem*>(device_ints + few);
  call.num_items = static_cast<int32_t>(items.few.size());
  call.prompt_items = reinterpret_cast<const AttentionItem*>(device_ints + prompt);
  call.num_prompt_items = static_cast<int32_t>(items.prompt.size());
  call.combines = reinterpret_cast<const AttentionCombine*>(device_ints + combines);
  call.num_combines = static_cast<int32_t>(items.combines.size());
  return launch();
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
             args.step, {0, 0}, args.batch_invariant, stream);
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
      args.step, {Width(*args.k_codes), Width(*args.v_codes)}, args.batch_invariant, stream);
}

absl::Status KvWriteCuda(const KvWriteArgs& args, Stream& stream) {
  const auto num_tokens = static_cast<int64_t>(args.slots.size());
  const int64_t* slots = nullptr;
  if (args.step != nullptr) {
    slots = args.step->addresses().slots;
  } else {
    TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(8 * num_tokens));
    TW_RETURN_IF_ERROR(Copy(ConstTensorView(args.slots.data(), DType::kI64, {num_tokens}),
                            TensorView(scratch, DType::kI64, {num_tokens}, stream.device()),
                            stream));
    slots = reinterpret_cast<const int64_t*>(scratch);
  }
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
  call.slots = slots;
  call.k_side = FloatSide(args.k_pages);
  call.v_side = FloatSide(args.v_pages);
  TW_RETURN_IF_CUDA_ERROR(LaunchKvWrite(call, CudaStream(stream)), stream.device());
  return absl::OkStatus();
}

absl::StatusOr<int64_t> CodedKvWriteCuda(const CodedKvWriteArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckCodesOn(*args.k_codes, stream.device()));
  TW_RETURN_IF_ERROR(CheckCodesOn(*args.v_codes, stream.device()));
  const auto num_tokens = static_cast<int64_t>(args.slots.size());
  const bool waits = args.first_wrong.empty();
  const bool exact = !args.exact_rows.empty();
  std::byte* scratch = nullptr;
  const int64_t* slots = nullptr;
  const int32_t* exact_rows = nullptr;
  if (args.step != nullptr && !waits) {
    slots = args.step->addresses().slots;
    exact_rows = exact ? args.step->addresses().exact_rows_of_tokens : nullptr;
  } else {
    // The index of the first wrong value, slots, exact rows.
    std::vector<int64_t> ints = {kNoWrongValue};
    ints.insert(ints.end(), args.slots.begin(), args.slots.end());
    ints.resize(ints.size() + (args.exact_rows.size() + 1) / 2);
    if (exact) {
      std::memcpy(ints.data() + 1 + num_tokens, args.exact_rows.data(), 4 * args.exact_rows.size());
    }
    const auto num_ints = static_cast<int64_t>(ints.size());
    TW_ASSIGN_OR_RETURN(scratch, stream.Scratch(8 * num_ints));
    TW_RETURN_IF_ERROR(Copy(ConstTensorView(ints.data(), DType::kI64, {num_ints}),
                            TensorView(scratch, DType::kI64, {num_ints}, stream.device()), stream));
    slots = reinterpret_cast<const int64_t*>(scratch) + 1;
    if (exact) exact_rows = reinterpret_cast<const int32_t*>(slots + num_tokens);
  }
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
  call.slots = slots;
  call.exact_rows = exact_rows;
  call.k_side = CodedSide(args.k_pages, *args.k_codes, args.exact_k);
  call.v_side = CodedSide(args.v_pages, *args.v_codes, args.exact_v);
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
