#include <algorithm>
#include <cmath>

#include "kernels/codes/codes.h"
#include "kernels/codes/codes_internal.h"
#include "kernels/convert/element.h"
#include "kernels/core/float16.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

// nearbyint rounds halves to even.
double Code(double value, double max_code) {
  return std::isnan(value) ? 0.0 : std::clamp(std::nearbyint(value), 0.0, max_code);
}

}  // namespace

float RoundGain(double gain) {
  const float rounded = ToFloat(ToHalf(static_cast<float>(std::min(gain, 65504.0))));
  return rounded == 0.0f ? 1.0f : rounded;
}

absl::Status QuantizeReference(const QuantizeArgs& args) {
  TW_RETURN_IF_ERROR(CheckQuantizeArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("quantize reference: x must be on the CPU");
  }
  const int64_t width = args.x.dim(1);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const auto u = [&](int64_t c) {
      return LoadElement(args.x, t * args.x.row_stride() + c) *
             static_cast<double>(args.inverse_step.data<float>()[c]);
    };
    double sum = 0.0;
    double largest = 0.0;
    for (int64_t c = 0; c < width; ++c) {
      sum += u(c) * u(c);
      largest = std::max(largest, std::fabs(u(c)));
    }
    double gain = 1.0;
    if (args.gain == GainKind::kRms) gain = RoundGain(std::sqrt(sum / static_cast<double>(width)));
    if (args.gain == GainKind::kMax) gain = RoundGain(largest / kMaxGainCodes);
    if (args.gain == GainKind::kGiven && args.gains.data<float>()[t] != 0.0f) {
      gain = args.gains.data<float>()[t];
    }
    if (!args.gains.empty()) args.gains.mutable_data<float>()[t] = static_cast<float>(gain);
    uint8_t* const codes = args.codes.mutable_data<uint8_t>() + t * args.codes.row_stride();
    for (int64_t c = 0; c < width; ++c) {
      const double zero = args.zero.data<float>()[c];
      const auto code =
          static_cast<uint8_t>(Code(u(c) / gain + zero, args.max_code.data<uint8_t>()[c]));
      codes[c] = args.snap.empty() ? code : args.snap.data<uint8_t>()[code];
    }
  }
  return absl::OkStatus();
}

absl::Status RoundToCodesReference(const RoundToCodesArgs& args) {
  TW_RETURN_IF_ERROR(CheckRoundToCodesArgs(args));
  if (args.x.device() != Device::Cpu()) {
    return absl::InvalidArgumentError("round to codes reference: x must be on the CPU");
  }
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t c = 0; c < args.x.dim(1); ++c) {
      const int64_t at = t * args.x.row_stride() + c;
      const double zero = args.zero.data<float>()[c];
      const double inverse_step = args.inverse_step.data<float>()[c];
      const double code =
          Code(LoadElement(args.x, at) * inverse_step + zero, args.max_code.data<uint8_t>()[c]);
      StoreElement(args.x, at, static_cast<double>(args.step.data<float>()[c]) * (code - zero));
    }
  }
  return absl::OkStatus();
}

}  // namespace thinwire
