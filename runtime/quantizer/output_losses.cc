#include "runtime/quantizer/output_losses.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/linear/blas.h"
#include "kernels/quantize/head_losses.h"

namespace thinwire {

absl::StatusOr<std::vector<double>> HeadLosses(ConstTensorView exact, TensorView coded,
                                               ConstTensorView weight, int64_t head_dim,
                                               Stream& stream) {
  const int64_t num_tokens = exact.dim(0), width = exact.dim(1), out = weight.dim(0);
  TW_CHECK(exact.contiguous() && coded.contiguous() && weight.contiguous());
  TW_CHECK_EQ(weight.dim(1), width);
  std::vector<double> losses(static_cast<size_t>(width / head_dim), 0.0);
  if (stream.device() != Device::Cpu()) {
    if constexpr (kHasCuda) {
      TW_RETURN_IF_ERROR(AddHeadLossesOnGpu({.exact = exact.data<float>(),
                                             .coded = coded.data<float>(),
                                             .weight = weight.data<float>(),
                                             .num_rows = num_tokens,
                                             .width = width,
                                             .head_dim = head_dim,
                                             .out_features = out,
                                             .losses = absl::MakeSpan(losses)},
                                            stream));
      return losses;
    }
    return absl::UnimplementedError(
        absl::StrCat("calibration on ", DeviceName(stream.device()), ": this build has no CUDA"));
  }
  auto* const error = coded.mutable_data<float>();
  for (int64_t i = 0; i < num_tokens * width; ++i) error[i] -= exact.data<float>()[i];
  std::vector<float> moved(static_cast<size_t>(num_tokens * out));
  for (int64_t h = 0; h < width / head_dim; ++h) {
    SgemmNT(num_tokens, out, head_dim, error + h * head_dim, width,
            weight.data<float>() + h * head_dim, width, 0.0f, moved.data(), out);
    for (const float value : moved) losses[h] += double{value} * double{value};
  }
  return losses;
}

}  // namespace thinwire
