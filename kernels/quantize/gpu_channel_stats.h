// Sums and ranges of channels of activations on a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "kernels/quantize/device_array.h"

namespace thinwire {

// What ChannelStats (runtime/quantizer) sums on the CPU, which is the reference: in double, in an
// order of its own, the same on every run. Move-only; all calls with one stream.
class GpuChannelStats {
 public:
  // Of no rows. width > 0.
  static absl::StatusOr<GpuChannelStats> Create(int64_t width, Stream& stream);

  // Enqueues rows x[t * stride + c], t < num_rows, c < width, in the GPU's memory. Of a NaN or an
  // infinity, Download tells.
  absl::Status Add(const float* x, int64_t stride, int64_t num_rows, Stream& stream);

  struct Sums {
    int64_t count = 0;
    std::vector<double> sums, squares;  // [width]
    std::vector<float> minima, maxima;  // [width]
  };
  // Done on return. InvalidArgument names channel and row, counted over all that were added, of the
  // first NaN or infinity.
  absl::StatusOr<Sums> Download(Stream& stream) const;

 private:
  int64_t width_ = 0;
  int64_t count_ = 0;
  DeviceArray<double> sums_;    // [2, width]: sums, squares
  DeviceArray<float> extrema_;  // [2, width]: minima, maxima
  DeviceArray<uint64_t> bad_;   // row * width + channel; the largest: none
};

}  // namespace thinwire
