// The host's part of VPTQ linears on a GPU: who does what, launches.
#include "kernels/vptq_linear/vptq_linear_cuda.h"

#include <algorithm>

#include "kernels/core/cuda_status.h"
#include "kernels/core/kept_buffer.h"
#include "kernels/linear/linear.h"
#include "kernels/vptq_linear/vptq_bytes_cuda.h"
#include "kernels/vptq_linear/vptq_device.h"

namespace thinwire {
namespace {

// Weights that are laid out at a time: what stays in the second-level cache until it is multiplied,
// but enough rows for a product that fills the GPU.
constexpr int64_t kWidenedBytes = int64_t{32} << 20;
constexpr int64_t kMostWidenedRows = 65408;  // of a grid, in whole blocks
constexpr int64_t kFewestWidenedRows = 2048;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t Aligned(int64_t bytes) { return CeilDiv(bytes, 256) * 256; }

int Attribute(cudaDeviceAttr attribute, Device device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attribute, device.index) == cudaSuccess ? value : 0;
}

template <typename T>
const T* DataOf(const Tensor& tensor) {
  return tensor.empty() ? nullptr : static_cast<const T*>(tensor.view().raw());
}

// Places in the stream's scratch, one after another.
class Places {
 public:
  int64_t Add(int64_t bytes) {
    const int64_t at = size_;
    size_ += Aligned(bytes);
    return at;
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

VptqPrepareCall PrepareCallOf(const VptqLinearArgs& args) {
  const VptqOnDevice& on_device = args.weights->on_device();
  VptqPrepareCall call = {};
  call.x = args.x.raw();
  call.x_stride = args.x.row_stride();
  call.dtype = args.x.dtype();
  call.num_tokens = static_cast<int32_t>(args.x.dim(0));
  call.in_features = static_cast<int32_t>(args.weights->in_features());
  call.order = DataOf<int32_t>(on_device.order);
  call.scale = DataOf<float>(on_device.scale);
  call.offset = DataOf<float>(on_device.offset);
  call.book_factor = on_device.book_factor;
  return call;
}

VptqResult ResultOf(const VptqLinearArgs& args) {
  VptqResult result = {};
  result.out_features = static_cast<int32_t>(args.weights->out_features());
  result.num_tokens = static_cast<int32_t>(args.x.dim(0));
  result.bias = static_cast<const float*>(args.bias.raw());
  result.y = args.y.mutable_raw();
  result.y_stride = args.y.row_stride();
  result.y_dtype = args.y.dtype();
  return result;
}

absl::Status Tables(const VptqLinearArgs& args, Stream& stream) {
  const VptqPart& part = args.weights->parts()[0];
  const VptqGroup& group = part.groups[0];
  VptqTablesCall call = {};
  call.codes = DataOf<uint32_t>(group.codes);
  call.centroids = DataOf<void>(group.centroids);
  call.residual = DataOf<void>(group.residual);
  call.index_bits = part.index_bits;
  call.residual_bits = part.code_bits(group) - part.index_bits;
  call.length = part.length;
  call.skip = part.skip;
  call.num_quads =
      static_cast<int32_t>(CeilDiv(part.num_vectors(args.weights->out_features()), kVptqQuadRows));
  call.num_units = static_cast<int32_t>(CeilDiv(group.num_columns, kVptqUnitColumns));
  call.result = ResultOf(args);
  call.planes = args.x.dtype() == DType::kF32 ? 3 : 1;
  call.x_stride = int64_t{call.num_units} * kVptqUnitColumns;
  call.num_blocks = std::max(1, Attribute(cudaDevAttrMultiProcessorCount, stream.device()));
  call.shared_memory_bytes = Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device());
  call.early_launches = VptqWaitsInKernels();
  PlanVptqTables(call);

  const int64_t tokens = args.x.dim(0);
  Places places;
  const int64_t x = places.Add(tokens * call.planes * call.x_stride * 2);
  const int64_t factors = places.Add(tokens * 4), dots = places.Add(tokens * 4);
  const int64_t partials =
      call.result.splits > 1
          ? places.Add(int64_t{call.result.splits} * tokens * call.result.out_features * 4)
          : 0;
  call.prepare = PrepareCallOf(args);
  call.prepare.planes = call.planes;
  call.prepare.to_stride = call.x_stride;
  call.prepare.early = call.early_launches;
  if (!call.makes_x) {
    TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(places.size()));
    call.prepare.to = scratch + x;
    call.prepare.factors = reinterpret_cast<float*>(scratch + factors);
    call.prepare.dots = reinterpret_cast<float*>(scratch + dots);
    TW_RETURN_IF_CUDA_ERROR(LaunchVptqPrepare(call.prepare, CudaStream(stream)), stream.device());
    call.x = call.prepare.to;
    call.result.factors = call.prepare.factors;
    call.result.dots = call.prepare.dots;
    if (call.result.splits > 1) {
      call.result.partials = reinterpret_cast<float*>(scratch + partials);
    }
  }
  TW_RETURN_IF_CUDA_ERROR(LaunchVptqTables(call, CudaStream(stream)), stream.device());
  return absl::OkStatus();
}

absl::Status Bytes(const VptqLinearArgs& args, Stream& stream) {
  const VptqOnDevice& on_device = args.weights->on_device();
  const VptqPart& part = args.weights->parts()[0];
  const VptqGroup& group = part.groups[0];
  VptqBytesCall call = {};
  call.codes = DataOf<uint32_t>(group.codes);
  call.centroids = DataOf<int8_t>(on_device.byte_centroids);
  call.residual = DataOf<int8_t>(on_device.byte_residual);
  for (size_t book = 0; book < 2; ++book) {
    std::copy_n(on_device.byte_scales[book].begin(), 8, call.scales[book]);
  }
  call.index_bits = part.index_bits;
  call.residual_bits = part.code_bits(group) - part.index_bits;
  call.length = part.length;
  call.skip = part.skip;
  call.num_groups =
      static_cast<int32_t>(CeilDiv(part.num_vectors(args.weights->out_features()), kVptqByteRows));
  call.num_strips = static_cast<int32_t>(VptqByteStrips(group.num_columns));
  call.rows_of_token = VptqByteRowsOfToken(args.x.dtype());
  call.result = ResultOf(args);
  call.num_blocks = std::max(1, Attribute(cudaDevAttrMultiProcessorCount, stream.device()));
  call.shared_memory_bytes = Attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device());
  call.early_launches = VptqWaitsInKernels();
  PlanVptqBytes(call);

  const VptqPrepareCall x = PrepareCallOf(args);
  VptqBytePrepareCall& prepare = call.prepare;
  prepare.x = x.x;
  prepare.x_stride = x.x_stride;
  prepare.dtype = x.dtype;
  prepare.num_tokens = x.num_tokens;
  prepare.in_features = x.in_features;
  prepare.order = x.order;
  prepare.scale = x.scale;
  prepare.offset = x.offset;
  prepare.num_strips = call.num_strips;
  prepare.early = call.early_launches;
  if (!call.makes_x) {
    const int64_t tokens = args.x.dim(0), rows = tokens * call.rows_of_token;
    Places places;
    const int64_t to = places.Add(rows * 2 * call.num_strips * kVptqByteStrip);
    const int64_t factors = places.Add(rows * call.num_strips * 4);
    const int64_t dots = places.Add(tokens * 4);
    const int64_t partials =
        call.result.splits > 1
            ? places.Add(int64_t{call.result.splits} * tokens * call.result.out_features * 4)
            : 0;
    TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(places.size()));
    prepare.to = reinterpret_cast<int8_t*>(scratch + to);
    prepare.factors = reinterpret_cast<float*>(scratch + factors);
    prepare.dots = reinterpret_cast<float*>(scratch + dots);
    TW_RETURN_IF_CUDA_ERROR(LaunchVptqBytePrepare(prepare, CudaStream(stream)), stream.device());
    call.result.dots = prepare.dots;
    if (call.result.splits > 1) {
      call.result.partials = reinterpret_cast<float*>(scratch + partials);
    }
  }
  TW_RETURN_IF_CUDA_ERROR(LaunchVptqBytes(call, CudaStream(stream)), stream.device());
  return absl::OkStatus();
}

// Calls f(part, group, where its columns begin) for each group that has any.
template <typename F>
absl::Status ForEachGroup(const VptqWeights& weights, const F& f) {
  int32_t position = 0;
  for (const VptqPart& part : weights.parts()) {
    for (const VptqGroup& group : part.groups) {
      if (group.num_columns == 0) continue;
      VptqDeviceGroup call = {};
      call.codes = DataOf<uint8_t>(group.codes);
      call.centroids = DataOf<void>(group.centroids);
      call.residual = DataOf<void>(group.residual);
      call.dtype = group.centroids.view().dtype();
      call.index_bits = part.index_bits;
      call.residual_bits = part.code_bits(group) - part.index_bits;
      call.num_columns = static_cast<int32_t>(group.num_columns);
      call.first_position = position;
      call.row_bytes = VptqRowBytes(group.num_columns, part.code_bits(group));
      call.in_tables = weights.on_device().in_tables;
      call.in_bytes = weights.on_device().in_bytes;
      call.num_units =
          static_cast<int32_t>(call.in_bytes ? VptqByteStrips(group.num_columns)
                                             : CeilDiv(group.num_columns, kVptqUnitColumns));
      call.book_factor = weights.on_device().book_factor;
      TW_RETURN_IF_ERROR(f(part, call));
      position += call.num_columns;
    }
  }
  return absl::OkStatus();
}

// A group after the other, each into sums of its own.
absl::Status AnyBooks(const VptqLinearArgs& args, Stream& stream) {
  const VptqWeights& weights = *args.weights;
  const int64_t tokens = args.x.dim(0), in = weights.in_features(), out = weights.out_features();
  int64_t groups = 0;
  for (const VptqPart& part : weights.parts()) groups += static_cast<int64_t>(part.groups.size());
  Places places;
  const int64_t x = places.Add(tokens * in * 4), dots = places.Add(tokens * 4);
  const int64_t partials = places.Add(groups * tokens * out * 4);
  TW_ASSIGN_OR_RETURN(std::byte* const scratch, stream.Scratch(places.size()));
  cudaStream_t const native = CudaStream(stream);
  VptqPrepareCall prepare = PrepareCallOf(args);
  prepare.to_stride = in;
  prepare.to = scratch + x;
  prepare.dots = reinterpret_cast<float*>(scratch + dots);
  TW_RETURN_IF_CUDA_ERROR(LaunchVptqPrepare(prepare, native), stream.device());
  VptqResult result = ResultOf(args);
  result.dots = prepare.dots;
  result.partials = reinterpret_cast<float*>(scratch + partials);
  TW_RETURN_IF_ERROR(ForEachGroup(
      weights, [&](const VptqPart& part, const VptqDeviceGroup& group) -> absl::Status {
        VptqAnyCall call = {};
        call.group = group;
        call.length = part.length;
        call.skip = part.skip;
        call.num_vectors = static_cast<int32_t>(part.num_vectors(out));
        call.out_features = static_cast<int32_t>(out);
        call.num_tokens = static_cast<int32_t>(tokens);
        call.x = static_cast<const float*>(prepare.to);
        call.x_stride = in;
        call.to = result.partials + result.splits++ * tokens * out;
        TW_RETURN_IF_CUDA_ERROR(LaunchVptqAny(call, native), stream.device());
        return absl::OkStatus();
      }));
  TW_RETURN_IF_CUDA_ERROR(LaunchVptqAdd(result, /*early=*/false, native), stream.device());
  return absl::OkStatus();
}

struct WidenedVptq;  // owns memory for rows that are laid out

}  // namespace

absl::Status VptqLinearFewTokensCuda(const VptqLinearArgs& args, Stream& stream) {
  if (args.weights->on_device().in_bytes) return Bytes(args, stream);
  return args.weights->on_device().in_tables ? Tables(args, stream) : AnyBooks(args, stream);
}

absl::Status VptqLinearManyTokensCuda(const VptqLinearArgs& args, Stream& stream) {
  const VptqWeights& weights = *args.weights;
  const DType dtype = args.x.dtype();
  const int64_t in = weights.in_features(), out = weights.out_features();
  const int64_t rows_at_a_time =
      std::min({out, kMostWidenedRows,
                std::max(kFewestWidenedRows,
                         kWidenedBytes / std::max<int64_t>(1, DTypeBytes(dtype, in)) / 128 * 128)});
  cudaStream_t const native = CudaStream(stream);
  // Not the stream's scratch, which the dense linear has use for.
  TW_ASSIGN_OR_RETURN(
      std::byte* const widened,
      stream.State<KeptBuffer<WidenedVptq>>().Get(rows_at_a_time * DTypeBytes(dtype, in), stream));
  VptqWidenCall call = {};
  call.order = DataOf<int32_t>(weights.on_device().order);
  call.scale = DataOf<float>(weights.on_device().scale);
  call.offset = DataOf<float>(weights.on_device().offset);
  call.dtype = dtype;
  call.to_stride = in;
  call.to = widened;
  for (int64_t row = 0; row < out; row += rows_at_a_time) {
    const int64_t count = std::min(rows_at_a_time, out - row);
    call.first = static_cast<int32_t>(row);
    call.num_rows = static_cast<int32_t>(count);
    TW_RETURN_IF_ERROR(ForEachGroup(
        weights, [&](const VptqPart& part, const VptqDeviceGroup& group) -> absl::Status {
          call.group = group;
          call.length = part.length;
          call.skip = part.skip;
          TW_RETURN_IF_CUDA_ERROR(LaunchVptqWiden(call, native), stream.device());
          return absl::OkStatus();
        }));
    LinearArgs linear;
    linear.x = args.x;
    linear.weight = ConstTensorView(widened, dtype, {count, in}, stream.device());
    if (!args.bias.empty()) linear.bias = args.bias.Rows(row, count);
    linear.y = args.y.Columns(row, count);
    TW_RETURN_IF_ERROR(Linear(linear, stream));
  }
  return absl::OkStatus();
}

absl::Status VptqLinearCuda(const VptqLinearArgs& args, Stream& stream) {
  const VptqOnDevice& on_device = args.weights->on_device();
  const int64_t few = on_device.in_bytes    ? kFewByteTokens
                      : on_device.in_tables ? kFewTableTokens
                                            : kFewAnyTokens;
  return args.batch_invariant || args.weights->in_features() == 0 || args.x.dim(0) <= few
             ? VptqLinearFewTokensCuda(args, stream)
             : VptqLinearManyTokensCuda(args, stream);
}

}  // namespace thinwire
