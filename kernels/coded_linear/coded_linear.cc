#include "kernels/coded_linear/coded_linear.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/coded_linear/coded_linear_cpu.h"
#include "kernels/coded_linear/coded_linear_device.h"
#include "kernels/coded_linear/integer_linear_in_order.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

absl::Status NotAvailable(absl::string_view op, Device device) {
  return absl::UnimplementedError(absl::StrCat(op, ": not available on ", DeviceName(device)));
}

// What both operators say about weights, y and the vectors over rows.
absl::Status CheckOutput(absl::string_view op, const ConstTensorView& x,
                         const CodedWeights* weights, std::optional<ActivationKind> gate,
                         const TensorView& y, Device device) {
  if (weights == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": no weights"));
  }
  const int64_t width = gate.has_value() ? weights->out_features() / 2 : weights->out_features();
  if (x.rank() != 2 || y.rank() != 2 || x.dim(1) != weights->in_features() ||
      y.dim(0) != x.dim(0) || y.dim(1) != width || !IsFloat(y.dtype())) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": expected [num_tokens, ", weights->in_features(),
                     "] and y of fp32, fp16 or bf16, "
                     "[num_tokens, ",
                     width, "], found ", x.DebugString(), " and y ", y.DebugString()));
  }
  for (const Device found : {x.device(), y.device(), weights->device()}) {
    if (found != device) {
      return absl::InvalidArgumentError(absl::StrCat(op, ": a tensor is on ", DeviceName(found),
                                                     ", the stream on ", DeviceName(device)));
    }
  }
  if (gate.has_value() && !HasGates(*weights, x.dim(0))) {
    return absl::UnimplementedError(absl::StrCat(op, " with a gate: not available on ",
                                                 DeviceName(device), " for ", x.dim(0),
                                                 " tokens and ", weights->out_features(), " rows"));
  }
  return absl::OkStatus();
}

// `view` is empty or fp32[size].
absl::Status CheckVector(absl::string_view op, absl::string_view name, const ConstTensorView& view,
                         int64_t size, Device device) {
  if (view.empty() || (view.rank() == 1 && view.dim(0) == size && view.dtype() == DType::kF32 &&
                       view.contiguous() && view.device() == device)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(op, ": expected ", name, " fp32[", size, "] on ",
                                                 DeviceName(device), ", found ", view.DebugString(),
                                                 " on ", DeviceName(view.device())));
}

absl::Status CheckSegments(const IntegerLinearArgs& args) {
  const CodedWeights& weights = *args.weights;
  const absl::Span<const int32_t> offsets = args.segment_offsets;
  if (offsets.size() != args.segment_step.size() + 1 || offsets.front() != 0 ||
      offsets.back() != weights.in_features()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "integer linear: expected offsets of segments from 0 to in_features, ",
        weights.in_features(), ", and a step for each, found ", offsets.size(), " offsets and ",
        args.segment_step.size(), " steps",
        offsets.empty() ? "" : absl::StrCat(", from ", offsets.front(), " to ", offsets.back())));
  }
  const int64_t largest = std::max((1 << weights.bits()) - 1, weights.max_zero());
  const int64_t most = std::numeric_limits<int32_t>::max() / 255 / largest;
  size_t group = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    while (weights.group_offsets()[group + 1] <= offsets[s]) ++group;
    if (offsets[s] >= offsets[s + 1] || offsets[s + 1] > weights.group_offsets()[group + 1] ||
        offsets[s + 1] - offsets[s] > most) {
      return absl::InvalidArgumentError(absl::StrCat(
          "integer linear: expected segments of 1 to ", most,
          " columns, each inside one group of the weights, found columns [", offsets[s], ", ",
          offsets[s + 1], ") where a group is [", weights.group_offsets()[group], ", ",
          weights.group_offsets()[group + 1], ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool HasGates(const CodedWeights& weights, int64_t num_tokens) {
  if constexpr (kHasCuda) {
    if (weights.device().kind == DeviceKind::kCuda) return HasGatesCuda(weights, num_tokens);
  }
  return false;
}

absl::Status CheckCodedLinearArgs(const CodedLinearArgs& args, Device device) {
  constexpr absl::string_view kOp = "coded linear";
  TW_RETURN_IF_ERROR(CheckOutput(kOp, args.x, args.weights, args.gate, args.y, device));
  if (args.x.dtype() != args.y.dtype()) {
    return absl::InvalidArgumentError(absl::StrCat(kOp, ": expected y of the dtype of x, found x ",
                                                   args.x.DebugString(), " and y ",
                                                   args.y.DebugString()));
  }
  return CheckVector(kOp, "bias", args.bias, args.weights->out_features(), device);
}

absl::Status CheckIntegerLinearArgs(const IntegerLinearArgs& args, Device device) {
  constexpr absl::string_view kOp = "integer linear";
  TW_RETURN_IF_ERROR(CheckOutput(kOp, args.codes, args.weights, args.gate, args.y, device));
  if (args.codes.dtype() != DType::kU8) {
    return absl::InvalidArgumentError(
        absl::StrCat(kOp, ": expected codes of uint8, found ", args.codes.DebugString()));
  }
  const int64_t out_features = args.weights->out_features();
  TW_RETURN_IF_ERROR(CheckVector(kOp, "gains", args.gains, args.codes.dim(0), device));
  TW_RETURN_IF_ERROR(CheckVector(kOp, "offset", args.offset, out_features, device));
  TW_RETURN_IF_ERROR(CheckVector(kOp, "bias", args.bias, out_features, device));
  return CheckSegments(args);
}

absl::Status CodedLinear(const CodedLinearArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckCodedLinearArgs(args, stream.device()));
  if (args.y.num_elements() == 0) return absl::OkStatus();
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda) {
      return CodedLinearCuda(args, stream);
    }
  }
  if (stream.device().kind != DeviceKind::kCpu) {
    return NotAvailable("coded linear", stream.device());
  }
  return CodedLinearCpu(args, stream);
}

namespace {

absl::Status RunIntegerLinear(const IntegerLinearArgs& args, bool in_order, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckIntegerLinearArgs(args, stream.device()));
  if (args.y.num_elements() == 0) return absl::OkStatus();
  if constexpr (kHasCuda) {
    if (stream.device().kind == DeviceKind::kCuda) return IntegerLinearCuda(args, in_order, stream);
  }
  if (stream.device().kind != DeviceKind::kCpu) {
    return NotAvailable("integer linear", stream.device());
  }
  return IntegerLinearCpu(args, stream);
}

}  // namespace

absl::Status IntegerLinear(const IntegerLinearArgs& args, Stream& stream) {
  return RunIntegerLinear(args, /*in_order=*/false, stream);
}

absl::Status IntegerLinearInOrder(const IntegerLinearArgs& args, Stream& stream) {
  return RunIntegerLinear(args, /*in_order=*/true, stream);
}

}  // namespace thinwire
