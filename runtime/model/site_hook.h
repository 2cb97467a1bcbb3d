// A look at a layer's activations between two operators: what calibration needs.
#pragma once

#include "absl/status/status.h"
#include "kernels/core/tensor_view.h"
#include "runtime/checkpoint/quant_scheme.h"

namespace thinwire {

// Called by LayerRunner at the sites of one layer, in the order in which they are computed.
class SiteHook {
 public:
  virtual ~SiteHook() = default;

  // x: [num_tokens, width] of the site, dtype of the activations; rows may be strided. What it is
  // changed to is what the layer goes on with. An error ends the layer and is returned as it is.
  virtual absl::Status At(QuantSite site, TensorView x) = 0;
};

inline absl::Status Look(SiteHook* hook, QuantSite site, TensorView x) {
  return hook == nullptr ? absl::OkStatus() : hook->At(site, x);
}

}  // namespace thinwire
