// The host's part of coded linears on a GPU: steps through the weights, launches.
#include "kernels/coded_linear/coded_linear_cuda.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/coded_linear/coded_layout.h"
#include "kernels/coded_linear/coded_linear_device.h"
#include "kernels/core/copy.h"
#include "kernels/core/cuda_status.h"
#include "kernels/linear/linear.h"

namespace thinwire {
namespace {

// Blocks of threads that a GPU should have at least, about one for each place on it.
constexpr int64_t kEnoughBlocks = 256;
// Steps of a warp's range that are worth its part of the sum.
constexpr int64_t kLeastSteps = 4;
constexpr int64_t kWarpsPerBlock = 8;
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
};

Steps MakeSteps(const CodedWeights& weights, absl::Span<const int32_t> offsets,
                absl::Span<const float> factors) {
  const auto width = static_cast<int32_t>(BlockColumns(weights.bits()));
  const auto step_columns = static_cast<int32_t>(StepColumns(weights.bits()));
  Steps made;
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

// GPUs before Hopper have no clusters of blocks.
bool HasClusters(Device device) {
  int found = 0;
  return cudaDeviceGetAttribute(&found, cudaDevAttrClusterLaunch, device.index) == cudaSuccess &&
         found != 0;
}

// Splits of a row's columns, by the weights' shape and the GPU alone.
int32_t Splits(const CodedWeights& weights, int64_t num_steps) {
  if (!HasClusters(weights.device())) return 1;
  const int64_t blocks = CeilDiv(weights.out_features(), 4 * kPanelRows);
  int32_t splits = 1;
  while (splits < 8 && blocks * splits < kEnoughBlocks &&
         num_steps >= 2 * splits * kWarpsPerBlock * kLeastSteps) {
    splits *= 2;
  }
  return splits;
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
  call.steps = reinterpret_cast<const LinearStep*>(device_steps);
  call.parts =
      reinterpret_cast<const LinearPart*>(device_steps + steps.steps.size() * sizeof(LinearStep));
  call.planes = 1;
  call.splits = Splits(weights, call.num_steps);
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

void SetY(const TensorView& y, const ConstTensorView& bias, CodedLinearCall& call) {
  call.y = y.mutable_raw();
  call.y_stride = y.row_stride();
  call.y_dtype = y.dtype();
  call.bias = static_cast<const float*>(bias.raw());
}

// Memory for unpacked weights, kept with the stream.
class WidenedWeights : public StreamState {
 public:
  explicit WidenedWeights(Device device) : device_(device) {}

  absl::StatusOr<std::byte*> Get(int64_t bytes, Stream& stream) {
    if (buffer_.size_bytes() < bytes) {
      TW_RETURN_IF_ERROR(stream.Synchronize());
      buffer_ = Buffer();
      TW_ASSIGN_OR_RETURN(buffer_, Buffer::Allocate(bytes, device_));
    }
    return buffer_.data();
  }

 private:
  Device device_;
  Buffer buffer_;
};

Steps GroupSteps(const CodedWeights& weights) {
  return MakeSteps(weights, weights.group_offsets(), {});
}

}  // namespace

absl::StatusOr<DeviceWeights> WeightsOnDevice(const CodedWeights& weights, const std::byte* bytes,
                                              int64_t num_bytes, Device device) {
  DeviceWeights made;
  const std::vector<int32_t> ints = StepInts(GroupSteps(weights));
  TW_ASSIGN_OR_RETURN(made.bytes, Buffer::Allocate(num_bytes + kSlackBytes, device));
  TW_ASSIGN_OR_RETURN(made.steps, Buffer::Allocate(static_cast<int64_t>(ints.size() * 4), device));
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(made.bytes.data(), bytes, static_cast<size_t>(num_bytes), cudaMemcpyHostToDevice),
      device);
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemset(made.bytes.data() + num_bytes, 0, static_cast<size_t>(kSlackBytes)), device);
  TW_RETURN_IF_CUDA_ERROR(
      cudaMemcpy(made.steps.data(), ints.data(), ints.size() * 4, cudaMemcpyHostToDevice), device);
  // On the default stream; others do not wait for it.
  TW_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(nullptr), device);
  return made;
}

absl::Status CodedLinearFewTokensCuda(const CodedLinearArgs& args, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const Steps steps = GroupSteps(weights);
  CodedLinearCall call = CallOf(weights, steps, weights.device_steps());
  call.planes = args.x.dtype() == DType::kF32 ? 3 : 1;
  const int64_t num_tokens = args.x.dim(0);
  const int64_t x_bytes = num_tokens * call.planes * call.num_steps * StepColumns(call.bits) * 2;
  std::byte* arranged = nullptr;
  if (!ReadsDirectly(args.x, steps)) {
    TW_ASSIGN_OR_RETURN(arranged, stream.Scratch(x_bytes));
  }
  // More tokens make longer blocks, of which fewer fit: halves of them end more evenly.
  if (num_tokens * call.planes > 8 && call.splits == 1 && call.num_steps >= 128 &&
      HasClusters(stream.device())) {
    call.splits = 2;
  }
  // Passes of whole tokens where they have several planes.
  const int64_t pass = call.planes == 1 ? num_tokens : kTokensPerPass / call.planes;
  for (int64_t t = 0; t < num_tokens; t += pass) {
    const int64_t count = std::min(pass, num_tokens - t);
    TW_RETURN_IF_ERROR(SetX(args.x.Rows(t, count), steps, arranged, call, stream));
    SetY(args.y.Rows(t, count), args.bias, call);
    TW_RETURN_IF_CUDA_ERROR(LaunchFloatLinear(call, CudaStream(stream)), stream.device());
  }
  return absl::OkStatus();
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
  TW_ASSIGN_OR_RETURN(
      std::byte* const widened,
      stream.State<WidenedWeights>().Get(rows_at_a_time * DTypeBytes(dtype, in), stream));
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

absl::Status CodedLinearCuda(const CodedLinearArgs& args, Stream& stream) {
  return args.x.dim(0) <= kFewCudaTokens ? CodedLinearFewTokensCuda(args, stream)
                                         : CodedLinearManyTokensCuda(args, stream);
}

absl::Status IntegerLinearCuda(const IntegerLinearArgs& args, Stream& stream) {
  const CodedWeights& weights = *args.weights;
  const Steps steps = MakeSteps(weights, args.segment_offsets, args.segment_step);
  const std::vector<int32_t> ints = StepInts(steps);
  const auto num_ints = static_cast<int64_t>(ints.size());
  const bool direct = ReadsDirectly(args.codes, steps);
  const int64_t x_bytes = direct ? 0
                                 : args.codes.dim(0) * static_cast<int64_t>(steps.steps.size()) *
                                       StepColumns(weights.bits());
  TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(Aligned(4 * num_ints) + x_bytes));
  // Pageable memory: the driver has taken a copy when this returns.
  TW_RETURN_IF_ERROR(Copy(ConstTensorView(ints.data(), DType::kI32, {num_ints}),
                          TensorView(scratch, DType::kI32, {num_ints}, stream.device()), stream));
  CodedLinearCall call = CallOf(weights, steps, scratch);
  TW_RETURN_IF_ERROR(SetX(args.codes, steps, scratch + Aligned(4 * num_ints), call, stream));
  SetY(args.y, args.bias, call);
  call.gains = static_cast<const float*>(args.gains.raw());
  call.offset = static_cast<const float*>(args.offset.raw());
  TW_RETURN_IF_CUDA_ERROR(LaunchIntegerLinear(call, CudaStream(stream)), stream.device());
  return absl::OkStatus();
}

}  // namespace thinwire
