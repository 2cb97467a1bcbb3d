// Sums over activations, formed where the activations lie.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"
#include "kernels/quantize/gpu_channel_stats.h"
#include "kernels/quantize/gpu_moments.h"
#include "runtime/quant/second_moments.h"
#include "runtime/quantizer/channel_stats.h"

namespace thinwire {

// ChannelStats of rows on a stream's device. On a GPU, sums are added in another order, and rows
// that are kept as samples are copied as they come. Move-only; borrows the stream.
class DeviceStats {
 public:
  // As ChannelStats. Unimplemented for a GPU in a build without CUDA; ResourceExhausted.
  static absl::StatusOr<DeviceStats> Create(int64_t width, int64_t sample_stride, Stream& stream);

  // As ChannelStats::Add, x on the stream's device. There, Take tells of a NaN or an infinity.
  absl::Status Add(ConstTensorView x, int64_t first = 0);

  // What was added; nothing may be added afterwards.
  absl::StatusOr<ChannelStats> Take();

 private:
  DeviceStats(int64_t width, int64_t sample_stride, Stream* stream)
      : stream_(stream), sample_stride_(sample_stride), here_(width, sample_stride) {}

  Stream* stream_;
  int64_t sample_stride_;
  int64_t count_ = 0;  // of rows on a GPU
  std::vector<float> samples_;
  ChannelStats here_;
  std::optional<GpuChannelStats> there_;
};

// SecondMoments of rows on a stream's device. Move-only; borrows the stream.
class DeviceMoments {
 public:
  // As SecondMoments. Unimplemented for a GPU in a build without CUDA; ResourceExhausted.
  static absl::StatusOr<DeviceMoments> Create(int64_t width, bool with_target, Stream& stream);

  // Rows x and, with a target, y, which is empty otherwise: [num_rows, width] fp32 on the stream's
  // device, rows may be strided. On a GPU, Take tells of a NaN or an infinity.
  absl::Status Add(ConstTensorView x, ConstTensorView y);

  // As SecondMoments::Merge. A failure is kept for Take.
  void Merge(const DeviceMoments& other);

  // What was added; nothing may be added afterwards.
  absl::StatusOr<SecondMoments> Take();

 private:
  DeviceMoments(int64_t width, bool with_target, Stream* stream)
      : stream_(stream), width_(width), with_target_(with_target) {}

  Stream* stream_;
  int64_t width_;
  bool with_target_;
  absl::Status status_;
  std::optional<SecondMoments> here_;
  std::optional<GpuMoments> there_;
};

}  // namespace thinwire
