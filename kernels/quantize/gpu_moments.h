// Moments of a linear layer's input, summed where it lies: on a GPU.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/quantize/device_array.h"

namespace thinwire {

// The sums of SecondMoments (runtime/quant), which is the reference: products in fp32 of up to 512
// rows whose means were taken off, added up in double. The same bits on every run on a GPU. Holds
// 8 width^2 bytes there, twice that with a target. Move-only; all calls with one stream.
class GpuMoments {
 public:
  // Of no rows. width > 0.
  static absl::StatusOr<GpuMoments> Create(int64_t width, bool with_target, Stream& stream);

  // Enqueues rows x[t * x_stride + c], t < num_rows, c < width, in the GPU's memory; y likewise,
  // null exactly when there is no target. Of a NaN or an infinity, Download tells. Takes the
  // stream's scratch: up to 4 (1024 + 2048) width bytes.
  absl::Status Add(const float* x, int64_t x_stride, const float* y, int64_t y_stride,
                   int64_t num_rows, Stream& stream);

  // Enqueues the addition of another's rows, behind these. Same width, same kind.
  absl::Status Merge(const GpuMoments& other, Stream& stream);

  int64_t width() const { return width_; }
  bool with_target() const { return with_target_; }

  // To host memory, done on return. `sums` as SecondMoments::sums() has them, extrema [width].
  // InvalidArgument names row and channel of the first NaN or infinity of what was added.
  absl::Status Download(absl::Span<double> sums, absl::Span<float> minima, absl::Span<float> maxima,
                        Stream& stream) const;

 private:
  int64_t width_ = 0;
  bool with_target_ = false;
  int64_t count_ = 0;
  DeviceArray<double> sums_;    // as SecondMoments::sums(), but for the count
  DeviceArray<float> extrema_;  // [2, width]: minima, maxima
  DeviceArray<uint64_t> bad_;   // (row * width + channel) * 2, + 1 of a target; the largest: none
};

}  // namespace thinwire
