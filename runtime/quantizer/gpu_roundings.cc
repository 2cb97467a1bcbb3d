#include "runtime/quantizer/gpu_roundings.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"
#include "kernels/quantize/gpu_rounding.h"

namespace thinwire {

absl::Status GpuRoundings::Apply(QuantSite site, const SiteRounding& rounding, TensorView x,
                                 Stream& stream) {
  if (rounding.empty()) return absl::OkStatus();
  const auto width = static_cast<int64_t>(rounding.step().size());
  TW_CHECK_EQ(x.dim(1), width);
  Site& there = sites_[static_cast<size_t>(site)];
  if (!(there.here == rounding)) {
    constexpr absl::string_view kWhat = "rounding of a site";
    const auto upload = [&](const auto& values, auto& to) -> absl::Status {
      using Array = std::decay_t<decltype(to)>;
      TW_ASSIGN_OR_RETURN(to, Array::CopyOf(values, kWhat, stream));
      return absl::OkStatus();
    };
    there.here = SiteRounding();
    TW_RETURN_IF_ERROR(upload(rounding.step(), there.step));
    TW_RETURN_IF_ERROR(upload(rounding.inverse_step(), there.inverse_step));
    TW_RETURN_IF_ERROR(upload(rounding.zero(), there.zero));
    TW_RETURN_IF_ERROR(upload(rounding.max_code(), there.max_code));
    TW_RETURN_IF_ERROR(upload(rounding.snap(), there.snap));
    there.here = rounding;
  }
  if constexpr (kHasCuda) {
    using Gain = GpuRoundingArgs::Gain;
    const int64_t first = rounding.first_exact() ? 1 : 0;
    return RoundRowsOnGpu({.x = x.mutable_data<float>() + first * x.row_stride(),
                           .stride = x.row_stride(),
                           .num_rows = x.dim(0) - first,
                           .width = width,
                           .step = there.step.data(),
                           .inverse_step = there.inverse_step.data(),
                           .zero = there.zero.data(),
                           .max_code = there.max_code.data(),
                           .snap = rounding.snap().empty() ? nullptr : there.snap.data(),
                           .gain = rounding.gain() == "max"  ? Gain::kMax
                                   : rounding.gain().empty() ? Gain::kNone
                                                             : Gain::kRms},
                          stream);
  }
  return absl::UnimplementedError(
      absl::StrCat("calibration on ", DeviceName(stream.device()), ": this build has no CUDA"));
}

}  // namespace thinwire
