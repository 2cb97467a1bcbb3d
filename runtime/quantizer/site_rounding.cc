#include "runtime/quantizer/site_rounding.h"

#include <algorithm>
#include <cmath>

#include "kernels/codes/codes.h"
#include "kernels/core/check.h"
#include "kernels/core/float16.h"
#include "runtime/quant/level_table.h"

namespace thinwire {
namespace {

// Added and taken off again, it rounds numbers up to 2^22 to integers, halves to even.
constexpr float kRound = 0x1.8p23f;

}  // namespace

SiteRounding::SiteRounding(const SiteCodes& codes, bool first_exact)
    : gain_(codes.gain), first_exact_(first_exact) {
  if (!codes.coded()) return;
  const size_t width = codes.order.size();
  step_.resize(width);
  inverse_step_.resize(width);
  zero_.resize(width);
  max_code_.resize(width);
  for (int64_t c = 0; c < codes.num_clusters(); ++c) {
    for (int32_t j = codes.offsets[c]; j < codes.offsets[c + 1]; ++j) {
      const int32_t channel = codes.order[j];
      step_[channel] = codes.step[j];
      inverse_step_[channel] = 1.0f / codes.step[j];
      zero_[channel] = codes.zero[j];
      max_code_[channel] =
          codes.levels.empty() ? static_cast<float>((1 << codes.bits[c]) - 1) : 255.0f;
    }
  }
  if (!codes.levels.empty()) {
    const std::array<uint8_t, 256> snap = SnapTable(codes.levels);
    snap_.assign(snap.begin(), snap.end());
  }
}

void SiteRounding::ApplyRow(float* x) const {
  const size_t width = step_.size();
  float gain = 1.0f;
  if (!gain_.empty()) {
    double sum = 0.0;
    float largest = 0.0f;
    for (size_t c = 0; c < width; ++c) {
      const float u = x[c] * inverse_step_[c];
      sum += double{u} * double{u};
      largest = std::max(largest, std::abs(u));
    }
    const double statistic = gain_ == "max" ? double{largest / kMaxGainCodes}
                                            : std::sqrt(sum / static_cast<double>(width));
    gain = ToFloat(ToHalf(static_cast<float>(std::min(statistic, 65504.0))));
    if (!(gain > 0.0f)) gain = 1.0f;
  }
  const float inverse_gain = 1.0f / gain;
  for (size_t c = 0; c < width; ++c) {
    float code = x[c] * inverse_step_[c] * inverse_gain + zero_[c];
    code = std::min(std::max(code, 0.0f), max_code_[c]);
    code = (code + kRound) - kRound;
    if (!snap_.empty()) code = snap_[static_cast<size_t>(code)];
    x[c] = gain * step_[c] * (code - zero_[c]);
  }
}

void SiteRounding::Apply(TensorView x) const {
  if (empty()) return;
  TW_CHECK_EQ(x.dim(1), static_cast<int64_t>(step_.size()));
  auto* rows = x.mutable_data<float>();
  for (int64_t t = first_exact_ ? 1 : 0; t < x.dim(0); ++t) ApplyRow(rows + t * x.row_stride());
}

SiteRoundings::SiteRoundings(const LayerCodes& codes, bool first_exact) {
  for (const QuantSite site : kQuantSites) {
    const bool cached = site == QuantSite::kK || site == QuantSite::kV;
    Set(site, SiteRounding(codes.at(site), first_exact && cached));
  }
}

}  // namespace thinwire
