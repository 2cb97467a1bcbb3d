// Ranges and moments of a site's channels over calibration tokens, and a sample of the tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/tensor_view.h"
#include "kernels/quantize/gpu_channel_stats.h"
#include "parallel/comm/communicator.h"

namespace thinwire {

// Sums in double, in the order of rows or of parts. Copyable.
class ChannelStats {
 public:
  // Keeps every `sample_stride`-th row that is added; 0: none.
  explicit ChannelStats(int64_t width, int64_t sample_stride = 0);

  // Of rows that a GPU summed, and samples [n, width] of them.
  ChannelStats(GpuChannelStats::Sums sums, std::vector<float> samples);

  // x: [num_tokens, width] fp32, rows may be strided; rows before `first` are left out.
  // InvalidArgument names row and channel of a NaN or infinity.
  absl::Status Add(ConstTensorView x, int64_t first = 0);

  // Adds another's rows behind these. Same width.
  void Merge(const ChannelStats& other);

  // Adds the other ranks' rows in rank order: the same result everywhere. Collective.
  absl::Status MergeOverRanks(Communicator& world, Stream& stream);

  int64_t width() const { return width_; }
  int64_t count() const { return count_; }
  double mean(int64_t c) const { return count_ == 0 ? 0.0 : sums_[c] / count_; }
  double mean_square(int64_t c) const { return count_ == 0 ? 0.0 : squares_[c] / count_; }
  // Of the deviation from the mean; >= 0.
  double variance(int64_t c) const;
  float minimum(int64_t c) const { return minima_[c]; }
  float maximum(int64_t c) const { return maxima_[c]; }

  // [width] by channel; the range of nothing is [0, 0].
  std::vector<float> Minima() const;
  std::vector<float> Maxima() const;

  int64_t num_samples() const { return static_cast<int64_t>(samples_.size()) / width_; }
  // [width]: the i-th sampled row.
  absl::Span<const float> SampleRow(int64_t i) const {
    return absl::MakeConstSpan(samples_).subspan(i * width_, width_);
  }
  // Values of channel c in the sampled rows.
  std::vector<float> Samples(int64_t c) const;

 private:
  int64_t width_;
  int64_t sample_stride_;
  int64_t count_ = 0;
  std::vector<double> sums_, squares_;
  std::vector<float> minima_, maxima_;
  std::vector<float> samples_;  // [num_samples, width]
};

}  // namespace thinwire
