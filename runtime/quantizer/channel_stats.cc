#include "runtime/quantizer/channel_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/quantizer/rank_exchange.h"

namespace thinwire {

ChannelStats::ChannelStats(int64_t width, int64_t sample_stride)
    : width_(width),
      sample_stride_(sample_stride),
      sums_(width),
      squares_(width),
      minima_(width, std::numeric_limits<float>::infinity()),
      maxima_(width, -std::numeric_limits<float>::infinity()) {}

ChannelStats::ChannelStats(GpuChannelStats::Sums sums, std::vector<float> samples)
    : width_(static_cast<int64_t>(sums.sums.size())),
      sample_stride_(0),
      count_(sums.count),
      sums_(std::move(sums.sums)),
      squares_(std::move(sums.squares)),
      minima_(std::move(sums.minima)),
      maxima_(std::move(sums.maxima)),
      samples_(std::move(samples)) {}

absl::Status ChannelStats::Add(ConstTensorView x, int64_t first) {
  TW_CHECK_EQ(x.dim(1), width_);
  const auto* rows = x.data<float>();
  for (int64_t t = first; t < x.dim(0); ++t) {
    const float* row = rows + t * x.row_stride();
    for (int64_t c = 0; c < width_; ++c) {
      const float value = row[c];
      if (!std::isfinite(value)) {
        return absl::InvalidArgumentError(absl::StrCat("channel ", c, " of token ", t, " is ",
                                                       value, "; expected a finite number"));
      }
      sums_[c] += value;
      squares_[c] += double{value} * double{value};
      minima_[c] = std::min(minima_[c], value);
      maxima_[c] = std::max(maxima_[c], value);
    }
    if (sample_stride_ > 0 && count_ % sample_stride_ == 0) {
      samples_.insert(samples_.end(), row, row + width_);
    }
    ++count_;
  }
  return absl::OkStatus();
}

void ChannelStats::Merge(const ChannelStats& other) {
  TW_CHECK_EQ(width_, other.width_);
  count_ += other.count_;
  for (int64_t c = 0; c < width_; ++c) {
    sums_[c] += other.sums_[c];
    squares_[c] += other.squares_[c];
    minima_[c] = std::min(minima_[c], other.minima_[c]);
    maxima_[c] = std::max(maxima_[c], other.maxima_[c]);
  }
  samples_.insert(samples_.end(), other.samples_.begin(), other.samples_.end());
}

absl::Status ChannelStats::MergeOverRanks(Communicator& world, Stream& stream) {
  if (world.size() == 1) return absl::OkStatus();
  std::vector<double> sums = {static_cast<double>(count_)};
  sums.insert(sums.end(), sums_.begin(), sums_.end());
  sums.insert(sums.end(), squares_.begin(), squares_.end());
  TW_RETURN_IF_ERROR(SumOverRanks(absl::MakeSpan(sums), world, stream));
  count_ = static_cast<int64_t>(sums[0]);
  std::copy_n(sums.begin() + 1, width_, sums_.begin());
  std::copy_n(sums.begin() + 1 + width_, width_, squares_.begin());
  TW_RETURN_IF_ERROR(
      RangeOverRanks(absl::MakeSpan(minima_), absl::MakeSpan(maxima_), world, stream));
  TW_ASSIGN_OR_RETURN(samples_, ConcatenateOverRanks(samples_, world, stream));
  return absl::OkStatus();
}

double ChannelStats::variance(int64_t c) const {
  return std::max(0.0, mean_square(c) - mean(c) * mean(c));
}

std::vector<float> ChannelStats::Minima() const {
  return count_ == 0 ? std::vector<float>(width_) : minima_;
}

std::vector<float> ChannelStats::Maxima() const {
  return count_ == 0 ? std::vector<float>(width_) : maxima_;
}

std::vector<float> ChannelStats::Samples(int64_t c) const {
  std::vector<float> values(num_samples());
  for (int64_t i = 0; i < num_samples(); ++i) values[i] = samples_[i * width_ + c];
  return values;
}

}  // namespace thinwire
