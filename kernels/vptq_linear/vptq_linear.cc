#include "kernels/vptq_linear/vptq_linear.h"

#include "absl/strings/str_cat.h"
#include "kernels/convert/convert.h"
#include "kernels/convert/element.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/vptq_linear/vptq_device.h"
#include "kernels/vptq_linear/vptq_linear_cpu.h"

namespace thinwire {

absl::Status CheckVptqLinearArgs(const VptqLinearArgs& args, Device device) {
  if (args.weights == nullptr) return absl::InvalidArgumentError("VPTQ linear: no weights");
  const int64_t in = args.weights->in_features();
  const int64_t out = args.weights->out_features();
  const ConstTensorView& x = args.x;
  const TensorView& y = args.y;
  if (x.rank() != 2 || y.rank() != 2 || x.dim(1) != in || y.dim(0) != x.dim(0) || y.dim(1) != out ||
      !IsFloat(x.dtype()) || y.dtype() != x.dtype()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "VPTQ linear: expected x [num_tokens, ", in, "] and y [num_tokens, ", out,
        "] of one of fp32, fp16 and bf16, found x ", x.DebugString(), " and y ", y.DebugString()));
  }
  const ConstTensorView& bias = args.bias;
  if (!bias.empty() && (bias.rank() != 1 || bias.dim(0) != out || bias.dtype() != DType::kF32 ||
                        bias.device() != device)) {
    return absl::InvalidArgumentError(
        absl::StrCat("VPTQ linear: expected bias fp32[", out, "] on ", DeviceName(device),
                     ", found ", bias.DebugString(), " on ", DeviceName(bias.device())));
  }
  for (const Device found : {x.device(), y.device(), args.weights->device()}) {
    if (found == device) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "VPTQ linear: a tensor is on ", DeviceName(found), ", the stream on ", DeviceName(device)));
  }
  return absl::OkStatus();
}

absl::StatusOr<VptqInput> PrepareVptqInput(const VptqLinearArgs& args, int64_t more_floats,
                                           Stream& stream) {
  const VptqWeights& weights = *args.weights;
  const int64_t num_tokens = args.x.dim(0);
  const int64_t in = weights.in_features();
  constexpr int64_t kAlign = 16;
  const int64_t sums = (num_tokens + kAlign - 1) / kAlign * kAlign;
  const int64_t inputs = (num_tokens * in + kAlign - 1) / kAlign * kAlign;
  const int64_t rows = stream.pool().num_threads() * in;
  TW_ASSIGN_OR_RETURN(std::byte * bytes,
                      stream.Scratch((inputs + sums + rows + more_floats + kAlign) *
                                     static_cast<int64_t>(sizeof(float))));
  auto* const x = reinterpret_cast<float*>(bytes);
  float* const dots = x + inputs;
  float* const rest = dots + sums;
  float* const raw = rest + more_floats;
  stream.pool().ParallelFor(num_tokens, 1 + 16384 / (in + 1), [&](int64_t begin, int64_t end) {
    float* const row = raw + ThreadPool::CurrentThread() * in;
    for (int64_t t = begin; t < end; ++t) {
      ConvertToFloat(args.x.Rows(t, 1).raw(), args.x.dtype(), row, in);
      float* const to = x + t * in;
      float sum = 0.0f;
      for (int64_t p = 0; p < in; ++p) {
        const float value = row[weights.order().empty() ? p : weights.order()[p]];
        if (!weights.offset().empty()) sum += value * weights.offset()[p];
        to[p] = weights.scale().empty() ? value : value * weights.scale()[p];
      }
      dots[t] = sum;
    }
  });
  return VptqInput{.x = x, .sums = dots, .rest = rest};
}

absl::Status VptqLinear(const VptqLinearArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckVptqLinearArgs(args, stream.device()));
  if (args.y.num_elements() == 0) return absl::OkStatus();
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda) return VptqLinearCuda(args, stream);
  }
  if (stream.device().kind != DeviceKind::kCpu) {
    return absl::UnimplementedError(
        absl::StrCat("VPTQ linear: not available on ", DeviceName(stream.device())));
  }
  return args.batch_invariant || args.x.dim(0) <= kFewVptqTokens
             ? VptqLinearFewTokens(args, stream)
             : VptqLinearManyTokens(args, stream);
}

absl::Status VptqLinearReference(const VptqLinearArgs& args) {
  TW_RETURN_IF_ERROR(CheckVptqLinearArgs(args, Device::Cpu()));
  const VptqWeights& weights = *args.weights;
  std::vector<float> row(static_cast<size_t>(weights.in_features()));
  for (int64_t o = 0; o < weights.out_features(); ++o) {
    weights.DequantizeRow(o, absl::MakeSpan(row));
    for (int64_t t = 0; t < args.x.dim(0); ++t) {
      double sum = args.bias.empty() ? 0.0 : static_cast<double>(args.bias.data<float>()[o]);
      for (int64_t i = 0; i < weights.in_features(); ++i) {
        sum += LoadElement(args.x, t * args.x.row_stride() + i) * static_cast<double>(row[i]);
      }
      StoreElement(args.y, t * args.y.row_stride() + o, sum);
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
