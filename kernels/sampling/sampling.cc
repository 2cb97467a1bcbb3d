#include "kernels/sampling/sampling.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/sampling/sampling_internal.h"

namespace thinwire {
namespace {

absl::Status CheckLogits(absl::string_view op, const ConstTensorView& logits,
                         const Stream& stream) {
  if (logits.rank() != 2 || logits.dtype() != DType::kF32 || logits.dim(1) < 1 ||
      logits.dim(1) > INT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat(op, ": expected logits fp32[num_rows, vocab], found ", logits.DebugString()));
  }
  if (logits.device() != stream.device()) {
    return absl::InvalidArgumentError(absl::StrCat(op, ": logits are on ",
                                                   DeviceName(logits.device()), ", the stream on ",
                                                   DeviceName(stream.device())));
  }
  return absl::OkStatus();
}

absl::Status CheckCount(absl::string_view op, absl::string_view name, size_t count,
                        const ConstTensorView& logits) {
  if (count == static_cast<size_t>(logits.dim(0))) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(op, ": expected ", logits.dim(0), " ", name,
                                                 ", one for each row of ", logits.DebugString(),
                                                 ", found ", count));
}

absl::Status CheckDraws(const ConstTensorView& logits, absl::Span<const SamplingParams> params,
                        absl::Span<const int64_t> positions, const Stream& stream) {
  TW_RETURN_IF_ERROR(CheckLogits("sample", logits, stream));
  TW_RETURN_IF_ERROR(CheckCount("sample", "params", params.size(), logits));
  TW_RETURN_IF_ERROR(CheckCount("sample", "positions", positions.size(), logits));
  for (size_t row = 0; row < params.size(); ++row) {
    const absl::Status status = ValidateSamplingParams(params[row]);
    if (!status.ok()) return Annotate(status, absl::StrCat("sample: row ", row));
  }
  return absl::OkStatus();
}

absl::Status CheckPlaces(const SampleThereArgs& args, const Stream& stream) {
  TW_RETURN_IF_ERROR(CheckCount("sample", "places", args.places.size(), args.logits));
  const TensorView& ids = args.token_ids;
  if (ids.rank() != 1 || ids.dtype() != DType::kI32 || !ids.contiguous() ||
      ids.device() != stream.device()) {
    return absl::InvalidArgumentError(absl::StrCat("sample: expected token ids int32[any] on ",
                                                   DeviceName(stream.device()), ", found ",
                                                   ids.DebugString()));
  }
  for (size_t row = 0; row < args.places.size(); ++row) {
    if (args.places[row] >= 0 && args.places[row] < ids.dim(0)) continue;
    return absl::InvalidArgumentError(absl::StrCat("sample: expected places in [0, ", ids.dim(0),
                                                   "), found ", args.places[row], " of row ", row));
  }
  return absl::OkStatus();
}

absl::Status NotAvailable(absl::string_view op, Device device) {
  return absl::UnimplementedError(absl::StrCat(op, ": not available on ", DeviceName(device)));
}

}  // namespace

absl::Status NoSoftmax(absl::string_view op, int64_t row, const ConstTensorView& logits) {
  return absl::InternalError(absl::StrCat(op, ": the logits of row ", row, " of ", logits.dim(0),
                                          " have a NaN or no finite maximum"));
}

absl::Status ValidateSamplingParams(const SamplingParams& params) {
  if (!(params.temperature >= 0.0f) || std::isinf(params.temperature)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature: expected a finite number >= 0, found ", params.temperature));
  }
  if (params.top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_k: expected a number >= 0, found ", params.top_k));
  }
  if (!(params.top_p > 0.0f && params.top_p <= 1.0f)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_p: expected a number in (0, 1], found ", params.top_p));
  }
  return absl::OkStatus();
}

absl::Status Sample(const SampleArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckDraws(args.logits, args.params, args.positions, stream));
  TW_RETURN_IF_ERROR(CheckCount("sample", "token_ids", args.token_ids.size(), args.logits));
  if (args.logits.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return SampleCuda(args, stream);
    return NotAvailable("sample", stream.device());
  }
  return SampleCpu(args, stream);
}

absl::Status SampleThere(const SampleThereArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckDraws(args.logits, args.params, args.positions, stream));
  TW_RETURN_IF_ERROR(CheckPlaces(args, stream));
  if (args.logits.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return SampleThereCuda(args, stream);
    return NotAvailable("sample", stream.device());
  }
  std::vector<int32_t> ids(args.params.size());
  TW_RETURN_IF_ERROR(
      SampleCpu({args.logits, args.params, args.positions, absl::MakeSpan(ids)}, stream));
  auto* const to = args.token_ids.mutable_data<int32_t>();
  for (size_t row = 0; row < ids.size(); ++row) to[args.places[row]] = ids[row];
  return absl::OkStatus();
}

absl::Status LogProbs(const LogProbArgs& args, Stream& stream) {
  TW_RETURN_IF_ERROR(CheckLogits("log probs", args.logits, stream));
  TW_RETURN_IF_ERROR(CheckCount("log probs", "targets", args.targets.size(), args.logits));
  TW_RETURN_IF_ERROR(CheckCount("log probs", "log_probs", args.log_probs.size(), args.logits));
  for (size_t row = 0; row < args.targets.size(); ++row) {
    if (args.targets[row] < 0 || args.targets[row] >= args.logits.dim(1)) {
      return absl::InvalidArgumentError(absl::StrCat("log probs: expected targets in [0, ",
                                                     args.logits.dim(1), "), found ",
                                                     args.targets[row], " in row ", row));
    }
  }
  if (args.logits.dim(0) == 0) return absl::OkStatus();
  if (stream.device().kind != DeviceKind::kCpu) {
    if constexpr (kHasCuda) return LogProbsCuda(args, stream);
    return NotAvailable("log probs", stream.device());
  }
  return LogProbsCpu(args, stream);
}

}  // namespace thinwire
