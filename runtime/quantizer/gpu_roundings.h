// Roundings of sites to their codes, applied on a GPU.
#pragma once

#include <array>

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/quantize/device_array.h"
#include "runtime/checkpoint/quant_scheme.h"
#include "runtime/quantizer/site_rounding.h"

namespace thinwire {

// Keeps each site's parameters there, and uploads them where they are others than before.
// Move-only.
class GpuRoundings {
 public:
  // As SiteRounding::Apply of rows on the stream's device, always the same stream: enqueued.
  // ResourceExhausted; Unimplemented in a build without CUDA.
  absl::Status Apply(QuantSite site, const SiteRounding& rounding, TensorView x, Stream& stream);

 private:
  struct Site {
    SiteRounding here;
    DeviceArray<float> step, inverse_step, zero, max_code;
    DeviceArray<uint8_t> snap;
  };

  std::array<Site, kQuantSites.size()> sites_;
};

}  // namespace thinwire
