// The host's part of coded linears on a GPU: steps through the weights, launches.
#include "kernels/coded_linear/coded_linear_cuda.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/coded_linear/coded_layout.h"
#include "kernels/coded_linear/coded_linear_device.h"
#include "kernels/core/copy.h"
#include "kernels/core/cuda_status.h"
#include "kernels/core/kept_buffer.h"
#include "kernels/linear/linear.h"

namespace thinwire {
namespace {

// Bytes of weights that are unpacked at a time.
constexpr int64_t kWidenedBytes = int64_t{128} << 20;
// Kernels read whole steps, up to three blocks beyond the last.
constexpr int64_t kSlackBytes = 3 * 96;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t Aligned(int64_t bytes) { return CeilDiv(bytes, 256) * 256; }

int64_t StepColumns(int bits) { return kStepBlocks * BlockColumns(bits); }

// Steps and parts of columns `offsets`, each part inside one group.
struct Steps {
  std::vector<LinearStep> steps;
  std::vector<LinearPart> parts;
  int32_t steps_per_part = 0;  // if all parts have as many, and full ones
  bool full = true;            // all steps are full
  bool are_groups = false;     // the parts, with factors of 1
};

Steps MakeSteps(const CodedWeights& weights, absl::Span<const int32_t> offsets,
                absl::Span<const float> factors) {
  const auto width = static_cast<int32_t>(BlockColumns(weights.bits()));
  const auto step_columns = static_cast<int32_t>(StepColumns(weights.bits()));
  Steps made;
  made.are_groups = factors.empty();
  int32_t group = 0;
  bool even = true;
  for (size_t p = 0; p + 1 < offsets.size(); ++p) {
    while (weights.group_offsets()[group + 1] <= offsets[p]) ++group;
    made.parts.push_back({group, factors.empty() ? 1.0f : factors[p]});
    // Columns of the group.
    const int32_t begin = offsets[p] - weights.group_offsets()[group];
    const int32_t end = offsets[p + 1] - weights.group_offsets()[group];
    const int32_t size = static_cast<int32_t>(made.steps.size());
    for (int32_t first = begin / width * width; first < end; first += step_columns) {
      const LinearStep step = {weights.block_offsets()[group] + first / width,
                               static_cast<int32_t>(p), weights.group_offsets()[group] + first,
                               std::max(0, begin - first), std::min(step_columns, end - first)};
      made.full = made.full && step.begin == 0 && step.end == step_columns;
      made.steps.push_back(step);
    }
    const int32_t count = static_cast<int32_t>(made.steps.size()) - size;
    if (p == 0) made.steps_per_part = count;
    even = even && count == made.steps_per_part;
  }
  if (!even || !made.full) made.steps_per_part = 0;
  return made;
}

int Attribute(cudaDeviceAttr attribute, Device device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attribute, device.index) == cudaSuccess ? value : 0;
}

// How a row's columns are shared out, by their steps alone: results on codes do not depend on what
// else is in a call.
void Divide(Device device, CodedLinearCall& call) {
  const int64_t chunks = CeilDiv(call.num_steps, kChunkColumns / StepColumns(call.bits));
  const auto blocks = static_cast<int32_t>(CeilDiv(chunks, kLinearWarps));
  call.splits = blocks;
  call.chunks_each = static_cast<int32_t>(CeilDiv(chunks, blocks));
  call.warps_each = kLinearWarps;
  while (call.warps_each / 2 >= call.chunks_each) call.warps_each /= 2;
  call.num_blocks_of_threads = std::max(1, Attribute(cudaDevAttrMultiProcessorCount, device));
  call.early_launches = FewTokensCanStartEarly();
}

// What blocks that have a row between them, or for themselves, can be; asked for once a stream.
class LinearBlocks : public StreamState {
 public:
  explicit LinearBlocks(Device device)
      : num_multiprocessors_(Attribute(cudaDevAttrMultiProcessorCount, device)),
        most_shared_bytes_(Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
        pairs_(MostLinearClusters(2)),
        fours_(MostLinearClusters(4)) {}

  // Clusters for `call` as Divide left it. 0: a second kernel was as fast or faster (README,
  // measured), or they would leave many multiprocessors over.
  int32_t Clusters(const CodedLinearCall& call, DType x_dtype, int64_t num_tokens) const {
    if (call.planes > 1 || (call.splits != 2 && call.splits != 4)) return 0;
    if (call.splits == 4 &&
        (x_dtype == DType::kBF16 || (x_dtype == DType::kF16 && num_tokens > 8))) {
      return 0;
    }
    const int32_t count = call.splits == 2 ? pairs_ : fours_;
    return 8 * count * call.splits < 7 * num_multiprocessors_ ? 0 : count;
  }

  // Whether blocks can have whole rows.
  bool CanHaveRows(const CodedLinearCall& call, DType x_dtype, int64_t num_tokens) const {
    return HasWholeRows(call, x_dtype, num_tokens, most_shared_bytes_);
  }

 private:
  int32_t num_multiprocessors_;
  int32_t most_shared_bytes_;
  int32_t pairs_, fours_;
};

// Whether blocks that have rows for themselves are through in no more rounds than those that share
// them, call.clusters of clusters or all at a time: then they are faster.
bool HadBetterHaveRows(const CodedLinearCall& call) {
  const int64_t pairs = CeilDiv(call.num_panels, 2), blocks = call.num_blocks_of_threads;
  const int64_t sharing =
      call.clusters > 0 ? call.clusters : std::max<int64_t>(1, blocks / call.splits);
  return CeilDiv(pairs, blocks) * call.splits <= CeilDiv(pairs, sharing);
}

bool HasPartials(const CodedLinearCall& call) {
  return !call.whole_rows && ((call.splits > 1 && call.clusters == 0) || call.planes > 1);
}

// Of `num_tokens`.
int64_t PartialBytes(const CodedLinearCall& call, int64_t num_tokens) {
  if (!HasPartials(call)) return 0;
  return Aligned(int64_t{call.splits} * num_tokens * call.planes * call.num_panels * kPanelRows *
                 4);
}

// device_steps: StepInts(steps) on the device.
void SetSteps(const Steps& steps, const std::byte* device_steps, CodedLinearCall& call) {
  call.steps = reinterpret_cast<const LinearStep*>(device_steps);
  call.parts =
      reinterpret_cast<const LinearPart*>(device_steps + steps.steps.size() * sizeof(LinearStep));
}

CodedLinearCall CallOf(const CodedWeights& weights, const Steps& steps,
                       const std::byte* device_steps) {
  CodedLinearCall call = {};
  call.codes = weights.panel_codes(0);
  call.scales = reinterpret_cast<const uint16_t*>(weights.panel_scales(0));
  call.zeros = weights.panel_zeros(0);
  call.bits = weights.bits();
  call.out_features = static_cast<int32_t>(weights.out_features());
  call.num_panels = static_cast<int32_t>(CeilDiv(weights.out_features(), kPanelRows));
  call.num_blocks = weights.block_offsets().back();
  call.num_groups = static_cast<int32_t>(weights.num_groups());
  call.num_steps = static_cast<int32_t>(steps.steps.size());
  call.num_parts = static_cast<int32_t>(steps.parts.size());
  call.steps_per_part = steps.steps_per_part;
  call.parts_are_groups = steps.are_groups;
  SetSteps(steps, device_steps, call);
  call.planes = 1;
  Divide(weights.device(), call);
  return call;
}

// Bytes of steps, then of parts.
std::vector<int32_t> StepInts(const Steps& steps) {
  const size_t step_bytes = steps.steps.size() * sizeof(LinearStep);
  const size_t part_bytes = steps.parts.size() * sizeof(LinearPart);
  std::vector<int32_t> ints((step_bytes + part_bytes) / sizeof(int32_t));
  std::memcpy(ints.data(), steps.steps.data(), step_bytes);
  std::memcpy(ints.data() + step_bytes / sizeof(int32_t), steps.parts.data(), part_bytes);
  return ints;
}

// Whether the kernels can read x as it lies: whole steps, rows of 16-byte pieces.
bool ReadsDirectly(const ConstTensorView& x, const Steps& steps) {
  return steps.full && x.dtype() != DType::kF32 && reinterpret_cast<uintptr_t>(x.raw()) % 16 == 0 &&
         DTypeBytes(x.dtype(), x.row_stride()) % 16 == 0;
}

// Points call.x at x as whole steps, rearranged into `to` if need be.
absl::Status SetX(const ConstTensorView& x, const Steps& steps, std::byte* to,
                  CodedLinearCall& call, Stream& stream) {
  call.num_tokens = static_cast<int32_t>(x.dim(0));
  call.x_dtype = x.dtype() == DType::kF32 ? DType::kBF16 : x.dtype();
  if (ReadsDirectly(x, steps)) {
    call.x = x.raw();
    call.x_stride = x.row_stride();
    return absl::OkStatus();
  }
  ArrangeCall arrange = {};
  arrange.x = x.raw();
  arrange.x_stride = x.row_stride();
  arrange.dtype = x.dtype();
  arrange.num_tokens = call.num_tokens;
  arrange.steps = call.steps;
  arrange.num_steps = call.num_steps;
  arrange.step_columns = static_cast<int32_t>(StepColumns(call.bits));
  arrange.to = to;
  call.x = to;
  call.x_stride = int64_t{arrange.num_steps} * arrange.step_columns;
  TW_RETURN_IF_CUDA_ERROR(LaunchArrange(arrange, CudaStream(stream)), stream.device());
  return absl::OkStatus();
}

void SetY(const TensorView& y, const ConstTensorView& bias, std::optional<ActivationKind> gate,
          CodedLinearCall& call) {
  call.y = y.mutable_raw();
  call.y_stride = y.row_stride();
  call.y_dtype = y.dtype();
  call.bias = static_cast<const float*>(bias.raw());
  call.gated = gate.has_value();
  call.gate = gate.value_or(ActivationKind::kRelu);
}

struct WidenedWeights;  // owns memory for unpacked weights

// Ints that kernels read again in each call with the same weights, kept with the stream: so that
// calls need not upload them, and can be captured in graphs.
class KeptInts : public StreamState {
 public:
  explicit KeptInts(Device device) : device_(device) {}

  // `ints` on the device, for the weights at `codes`, few tokens or many.
  absl::StatusOr<const std::byte*> Get(const std::byte* codes, bool many,
                                       const std::vector<int32_t>& ints, Stream& stream) {
    Kept& kept = kept_[{codes, many}];
    // Other weights may have come to lie where these did.
    if (kept.here != ints) {
      TW_RETURN_IF_ERROR(stream.Synchronize());
      const auto size = static_cast<int64_t>(ints.size());
      kept.here.clear();
      TW_ASSIGN_OR_RETURN(kept.there, Buffer::Allocate(4 * size, device_));
      // Pageable memory: the driver has taken a copy when this returns.
      TW_RETURN_IF_ERROR(Copy(ConstTensorView(ints.data(), DType::kI32, {size}),
                              TensorView(kept.there.data(), DType::kI32, {size}, device_), stream));
      kept.here = ints;
    }
    return kept.there.data();
  }

 private:
  struct Kept {
    std::vector<int32_t> here;
    Buffer there;
  };

  Device device_;
  absl::flat_hash_map<std::pair<const std::byte*, bool>, Kept> kept_;
};

Steps GroupSteps(const CodedWeights& weights) {
  return MakeSteps(weights, weights.group_offsets(), {});
}

}  // namespace

absl::StatusOr<DeviceWeights> WeightsOnDevice(const CodedWeights& weights, const std::byte* bytes,
                                              int64_t num_bytes, Device device) {
  const int64_t num_blocks =
      CeilDiv(weights.out_features(), kPanelRows) * weights.block_offsets().back();
  DeviceWeights made;
  const std::vector<int32_t> ints = StepInts(GroupSteps(weights));
  TW_ASSIGN_OR_RETURN(made.bytes, Buffer::Allocate(num_bytes + kSlackBytes, device));
  TW_ASSIGN_OR_RETURN(made.steps, Buffer::Allocate(static_cast<int64_t>(ints.size() * 4), device));
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(made.bytes.data(), bytes, static_cast<size_t>(num_bytes), cudaMemcpyHostToDevice),
      device);
  if (weights.bits() == 3) {
    // High bits as kernels take them, some MiB of blocks at a time.
    constexpr int64_t kAtATime = 1 << 16;
    std::vector<uint8_t> blocks;
    for (int64_t first = 0; first < num_blocks; first += kAtATime) {
      const auto* from = reinterpret_cast<const uint8_t*>(bytes) + first * BlockBytes(3);
      blocks.assign(from, from + std::min(kAtATime, num_blocks - first) * BlockBytes(3));
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (i % 96 >= 64) blocks[i] = HighBitsOnDevice(blocks[i]);
      }
      TW_RETURN_IF_CUDA_ERROR(cudaMemcpy(made.bytes.data() + first * BlockBytes(3), blocks.data(),
                                         blocks.size(), cudaMemcpyHostToDevice),
                              device);
    }
  }
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemset(made.bytes.data() + num_bytes, 0, static_cast<size_t>(kSlackBytes)), device);
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(made.steps.data(), ints.data(), ints.size() * 4, cudaMemcpyHostToDevice), device);
  // On the default stream; others do not wait for it.
  TW_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr), device);
  return made;
}

namespace {

enum class RowBlocks { kFastest, kShared, kWhole };

absl::Status FewTokens(const CodedLinearArgs& args, RowBlocks blocks, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const Steps steps = GroupSteps(weights);
  CodedLinearCall call = CallOf(weights, steps, weights.device_steps());
  call.planes = args.x.dtype() == DType::kF32 ? 3 : 1;
  const int64_t num_tokens = args.x.dim(0);
  const auto& can = stream.State<LinearBlocks>();
  call.clusters = can.Clusters(call, args.x.dtype(), num_tokens);
  call.whole_rows = blocks != RowBlocks::kShared &&
                    can.CanHaveRows(call, args.x.dtype(), num_tokens) &&
                    (blocks == RowBlocks::kWhole || HadBetterHaveRows(call));
  if (blocks == RowBlocks::kWhole && !call.whole_rows) {
    return absl::UnimplementedError("coded linear: blocks cannot have whole rows of these");
  }
  if (call.whole_rows) call.clusters = 0;
  // Passes of whole tokens where they have several planes.
  const int64_t pass =
      call.planes == 1 ? num_tokens : std::min<int64_t>(num_tokens, kTokensPerPass / call.planes);
  const int64_t partial_bytes = PartialBytes(call, pass);
  const int64_t x_bytes = ReadsDirectly(args.x, steps)
                              ? 0
                              : pass * call.planes * call.num_steps * StepColumns(call.bits) * 2;
  TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(partial_bytes + x_bytes));
  if (HasPartials(call)) call.partials = reinterpret_cast<float*>(scratch);
  for (int64_t t = 0; t < num_tokens; t += pass) {
    const int64_t count = std::min(pass, num_tokens - t);
    TW_RETURN_IF_ERROR(SetX(args.x.Rows(t, count), steps, scratch + partial_bytes, call, stream));
    SetY(args.y.Rows(t, count), args.bias, args.gate, call);
    const cudaError_t error =
        (call.whole_rows ? LaunchWholeRows : LaunchFloatLinear)(call, CudaStream(stream));
    TW_RETURN_IF_CUDA_ERROR(error, stream.device());
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CodedLinearFewTokensCuda(const CodedLinearArgs& args, Stream& stream) {
  return FewTokens(args, RowBlocks::kFastest, stream);
}

absl::Status CodedLinearSharedRowsCuda(const CodedLinearArgs& args, Stream& stream) {
  return FewTokens(args, RowBlocks::kShared, stream);
}

absl::Status CodedLinearWholeRowsCuda(const CodedLinearArgs& args, Stream& stream) {
  return FewTokens(args, RowBlocks::kWhole, stream);
}

absl::Status CodedLinearManyTokensCuda(const CodedLinearArgs& args, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const DType dtype = args.x.dtype();
  const int64_t in = weights.in_features(), out = weights.out_features();
  const int64_t rows_at_a_time = std::min(
      CeilDiv(out, kPanelRows) * kPanelRows,
      std::max(kPanelRows, kWidenedBytes / DTypeBytes(dtype, in) / kPanelRows * kPanelRows));
  // Not the stream's scratch, which the dense linear has use for.
  cudaStream_t const native = CudaStream(stream);
  TW_ASSIGN_OR_RETURN(std::byte* const widened,
                      stream.State<KeptBuffer<WidenedWeights>>().Get(
                          rows_at_a_time * DTypeBytes(dtype, in), stream));
  WidenCall widen = {};
  widen.weights = CallOf(weights, GroupSteps(weights), weights.device_steps());
  widen.in_features = in;
  widen.dtype = dtype;
  widen.to = widened;
  for (int64_t row = 0; row < out; row += rows_at_a_time) {
    const int64_t count = std::min(rows_at_a_time, out - row);
    widen.first_row = static_cast<int32_t>(row);
    widen.num_rows = static_cast<int32_t>(count);
    TW_RETURN_IF_CUDA_ERROR(LaunchWiden(widen, native), stream.device());
    LinearArgs linear;
    linear.x = args.x;
    linear.weight = ConstTensorView(widened, dtype, {count, in}, stream.device());
    if (!args.bias.empty()) linear.bias = args.bias.Rows(row, count);
    linear.y = args.y.Columns(row, count);
    TW_RETURN_IF_ERROR(Linear(linear, stream));
  }
  return absl::OkStatus();
}

bool HasGatesCuda(const CodedWeights& weights, int64_t num_tokens) {
  // Kernels have 31 bits for the way from a gate's first panel to what it lets through.
  const int64_t half_bytes = weights.out_features() / 2 / kPanelRows *
                             weights.block_offsets().back() * BlockBytes(weights.bits());
  return weights.out_features() % (2 * kPanelRows) == 0 && num_tokens <= kFewCudaTokens &&
         half_bytes < int64_t{1} << 31;
}

absl::Status CodedLinearCuda(const CodedLinearArgs& args, Stream& stream) {
  return args.batch_invariant || args.x.dim(0) <= kFewCudaTokens
             ? CodedLinearFewTokensCuda(args, stream)
             : CodedLinearManyTokensCuda(args, stream);
}

namespace {

// Whether all parts are whole chunks of the kernels.
bool HasOnePartChunks(const CodedLinearCall& call) {
  return call.steps_per_part > 0 &&
         call.steps_per_part % (kChunkColumns / StepColumns(call.bits)) == 0;
}

// Whether many tokens can go to LaunchManyCodes.
bool ManyCodesFit(const CodedWeights& weights) {
  return weights.bits() < 8 && weights.max_zero() <= kMostSignedZero &&
         HasManyCodes(Attribute(cudaDevAttrComputeCapabilityMajor, weights.device()));
}

// ManyCodesCall::next_parts.
std::vector<int32_t> NextParts(const CodedWeights& weights, const Steps& steps, bool one_part) {
  std::vector<int32_t> next_parts;
  const auto part_of = [&](size_t step) {
    return steps.steps[std::min(step, steps.steps.size() - 1)].part;
  };
  if (one_part) {
    const auto chunk = static_cast<size_t>(kChunkColumns / StepColumns(weights.bits()));
    for (size_t s = 0; s < steps.steps.size(); s += chunk) next_parts.push_back(part_of(s + chunk));
    return next_parts;
  }
  const int64_t largest = std::max((1 << weights.bits()) - 1, weights.max_zero());
  const int64_t most = kMostPieceSum / 255 / largest / 32;  // times 32 columns
  int64_t count = 0;
  for (size_t s = 0; s < steps.steps.size(); ++s) {
    for (int64_t c = 32; c <= StepColumns(weights.bits()); c += 32) {
      const bool ends = c == StepColumns(weights.bits()) &&
                        (s + 1 == steps.steps.size() || part_of(s + 1) != part_of(s));
      count = ends || count + 1 == most ? 0 : count + 1;
      next_parts.push_back(count > 0 ? -1 : ends ? part_of(s + 1) : part_of(s));
    }
  }
  return next_parts;
}

}  // namespace

absl::Status IntegerLinearCuda(const IntegerLinearArgs& args, bool in_order, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const Steps steps = MakeSteps(weights, args.segment_offsets, args.segment_step);
  std::vector<int32_t> ints = StepInts(steps);
  const size_t num_step_ints = ints.size();
  CodedLinearCall call = CallOf(weights, steps, nullptr);
  const bool many = args.codes.dim(0) > kFewCudaTokens && ManyCodesFit(weights) &&
                    (!in_order || HasOnePartChunks(call));
  ManyCodesCall many_call = {};
  if (many) {
    many_call.one_part = HasOnePartChunks(call);
    const std::vector<int32_t> next_parts = NextParts(weights, steps, many_call.one_part);
    ints.insert(ints.end(), next_parts.begin(), next_parts.end());
  }
  TW_ASSIGN_OR_RETURN(const std::byte* const there,
                      stream.State<KeptInts>().Get(reinterpret_cast<const std::byte*>(call.codes),
                                                   many, ints, stream));
  call.clusters = stream.State<LinearBlocks>().Clusters(call, DType::kU8, args.codes.dim(0));
  const int64_t partial_bytes = many ? 0 : PartialBytes(call, args.codes.dim(0));
  const int64_t x_bytes =
      ReadsDirectly(args.codes, steps)
          ? 0
          : args.codes.dim(0) * int64_t{call.num_steps} * StepColumns(weights.bits());
  TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(partial_bytes + x_bytes));
  SetSteps(steps, there, call);
  if (!many && HasPartials(call)) call.partials = reinterpret_cast<float*>(scratch);
  TW_RETURN_IF_ERROR(SetX(args.codes, steps, scratch + partial_bytes, call, stream));
  SetY(args.y, args.bias, args.gate, call);
  call.gains = static_cast<const float*>(args.gains.raw());
  call.offset = static_cast<const float*>(args.offset.raw());
  if (!many) {
    TW_RETURN_IF_CUDA_ERROR(LaunchIntegerLinear(call, CudaStream(stream)), stream.device());
    return absl::OkStatus();
  }
  many_call.linear = call;
  many_call.columns = static_cast<int32_t>(call.num_steps * StepColumns(call.bits));
  many_call.next_parts = reinterpret_cast<const int32_t*>(there) + num_step_ints;
  const int64_t rows = CeilDiv(weights.out_features(), kPanelRows) * kPanelRows;
  const int64_t rows_at_a_time =
      std::min(rows, std::max<int64_t>(128, kWidenedBytes / many_call.columns / 128 * 128));
  TW_ASSIGN_OR_RETURN(std::byte* const widened, stream.State<KeptBuffer<WidenedWeights>>().Get(
                                                    rows_at_a_time * many_call.columns, stream));
  many_call.widened = reinterpret_cast<int8_t*>(widened);
  for (int64_t row = 0; row < weights.out_features(); row += rows_at_a_time) {
    many_call.first_row = static_cast<int32_t>(row);
    many_call.num_rows =
        static_cast<int32_t>(std::min(rows_at_a_time, weights.out_features() - row));
    TW_RETURN_IF_CUDA_ERROR(LaunchManyCodes(many_call, CudaStream(stream)), stream.device());
  }
  return absl::OkStatus();
}

}  // namespace thinwire
