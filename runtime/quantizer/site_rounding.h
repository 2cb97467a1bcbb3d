// What codes of a site would make of its activations, on rows in floating point: calibration sees
// what a run will see.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/tensor_view.h"
#include "runtime/checkpoint/rptq_file.h"

namespace thinwire {

// Parameters by channel. Empty: activations stay as they are.
class SiteRounding {
 public:
  SiteRounding() = default;

  // `first_exact`: row 0, the first token of the window, is left alone.
  SiteRounding(const SiteCodes& codes, bool first_exact);

  bool empty() const { return step_.empty(); }

  // x: [num_tokens, width] fp32, rows may be strided; in place.
  void Apply(TensorView x) const;

  // For those who apply it elsewhere (GpuRoundings): [width] by channel, codes up to max_code
  // included; snap [256], or empty; "max", "rms" or empty.
  const std::vector<float>& step() const { return step_; }
  const std::vector<float>& inverse_step() const { return inverse_step_; }
  const std::vector<float>& zero() const { return zero_; }
  const std::vector<float>& max_code() const { return max_code_; }
  const std::vector<uint8_t>& snap() const { return snap_; }
  const std::string& gain() const { return gain_; }
  bool first_exact() const { return first_exact_; }

  bool operator==(const SiteRounding&) const = default;

 private:
  void ApplyRow(float* x) const;

  std::vector<float> step_, inverse_step_, zero_, max_code_;
  std::vector<uint8_t> snap_;  // [256], or empty
  std::string gain_;
  bool first_exact_ = false;
};

class SiteRoundings {
 public:
  SiteRoundings() = default;

  // Of all coded sites; K and V of a window's first token are exact where `first_exact`.
  SiteRoundings(const LayerCodes& codes, bool first_exact);

  const SiteRounding& at(QuantSite site) const { return sites_[static_cast<size_t>(site)]; }
  void Set(QuantSite site, SiteRounding rounding) {
    sites_[static_cast<size_t>(site)] = std::move(rounding);
  }

 private:
  std::array<SiteRounding, kQuantSites.size()> sites_;
};

}  // namespace thinwire
