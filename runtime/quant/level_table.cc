#include "runtime/quant/level_table.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"

namespace thinwire {
namespace {

constexpr int kCodes = 256;
constexpr double kHalfEven = 0x1.8p52;  // adding it rounds to an integer

}  // namespace

// Sums over codes below a code, so that the error of any range is a few operations.
class CodeHistogram::Sums {
 public:
  explicit Sums(const std::array<Bin, 256>& bins) {
    for (int b = 0; b < kCodes; ++b) {
      const Bin& bin = bins[b];
      // sum w (d + b - level)^2 over the bin's samples, d their place relative to its code, as a
      // polynomial in the level.
      constant_[b + 1] = constant_[b] + bin.residual + b * (2.0 * bin.offset + b * bin.weight);
      linear_[b + 1] = linear_[b] - 2.0 * (bin.offset + b * bin.weight);
      square_[b + 1] = square_[b] + bin.weight;
    }
  }

  // Of codes [first, end) going to `level`.
  double Error(int first, int end, int level) const {
    const double error =
        (constant_[end] - constant_[first]) +
        level * ((linear_[end] - linear_[first]) + level * (square_[end] - square_[first]));
    return std::max(0.0, error);
  }

 private:
  std::array<double, kCodes + 1> constant_ = {};
  std::array<double, kCodes + 1> linear_ = {};
  std::array<double, kCodes + 1> square_ = {};
};

absl::Status CodeHistogram::Add(absl::Span<const float> x, absl::Span<const float> weights,
                                const UniformGrid& grid, double importance) {
  TW_CHECK_EQ(grid.bits, 8);
  TW_CHECK(weights.empty() || weights.size() == x.size());
  for (size_t t = 0; t < x.size(); ++t) {
    const float weight = weights.empty() ? 1.0f : weights[t];
    if (!std::isfinite(x[t]) || !(weight >= 0.0f) || std::isinf(weight)) {
      return absl::InvalidArgumentError(absl::StrCat("sample ", t, ": ", x[t], " of weight ",
                                                     weight, ", expected finite numbers"));
    }
  }
  const auto step = static_cast<double>(grid.step);
  for (size_t t = 0; t < x.size(); ++t) {
    const double weight =
        importance * step * step * (weights.empty() ? 1.0 : static_cast<double>(weights[t]));
    const double position = static_cast<double>(x[t]) / step + static_cast<double>(grid.zero);
    const double code = (std::clamp(position, 0.0, 255.0) + kHalfEven) - kHalfEven;
    Bin& bin = bins_[static_cast<size_t>(static_cast<int>(code))];
    bin.weight += weight;
    bin.offset += weight * (position - code);
    bin.residual += weight * (position - code) * (position - code);
  }
  return absl::OkStatus();
}

void CodeHistogram::Merge(const CodeHistogram& other) {
  for (int b = 0; b < kCodes; ++b) {
    bins_[b].weight += other.bins_[b].weight;
    bins_[b].offset += other.bins_[b].offset;
    bins_[b].residual += other.bins_[b].residual;
  }
}

LevelTable CodeHistogram::OptimalLevels(int num_levels) const {
  TW_CHECK(num_levels >= 1 && num_levels <= kCodes);
  LevelTable table;
  table.levels.resize(static_cast<size_t>(num_levels));
  const bool empty =
      std::all_of(bins_.begin(), bins_.end(), [](const Bin& bin) { return bin.weight == 0.0; });
  if (empty) {
    for (int i = 0; i < num_levels; ++i) {
      table.levels[i] = static_cast<uint8_t>(
          num_levels == 1 ? kCodes / 2
                          : (i * (kCodes - 1) * 2 + num_levels - 1) / (2 * (num_levels - 1)));
    }
    table.snap = SnapTable(table.levels);
    return table;
  }
  const Sums sums(bins_);
  // between[p * 256 + l]: the error of codes p + 1 .. l when p and l are neighbouring levels.
  std::vector<double> between(static_cast<size_t>(kCodes) * kCodes);
  for (int p = 0; p < kCodes; ++p) {
    for (int l = p + 1; l < kCodes; ++l) {
      const int middle = (p + l) / 2;
      between[p * kCodes + l] = sums.Error(p + 1, middle + 1, p) + sums.Error(middle + 1, l + 1, l);
    }
  }
  // least[l]: the error of codes 0 .. l with k levels, l the highest; from[k][l]: the one below it.
  std::vector<double> least(kCodes);
  std::vector<double> next(kCodes);
  std::vector<uint8_t> from(static_cast<size_t>(num_levels * kCodes), 0);
  for (int l = 0; l < kCodes; ++l) least[l] = sums.Error(0, l + 1, l);
  for (int k = 1; k < num_levels; ++k) {
    std::fill(next.begin(), next.end(), std::numeric_limits<double>::infinity());
    for (int l = k; l < kCodes; ++l) {
      for (int p = k - 1; p < l; ++p) {
        const double error = least[p] + between[p * kCodes + l];
        if (error < next[l]) {
          next[l] = error;
          from[k * kCodes + l] = static_cast<uint8_t>(p);
        }
      }
    }
    least.swap(next);
  }
  for (int l = 0; l < kCodes; ++l) least[l] += sums.Error(l + 1, kCodes, l);
  const auto highest = std::min_element(least.begin(), least.end());
  table.error = *highest;
  auto level = static_cast<int>(highest - least.begin());
  for (int k = num_levels - 1; k >= 0; --k) {
    table.levels[k] = static_cast<uint8_t>(level);
    level = from[k * kCodes + level];
  }
  table.snap = SnapTable(table.levels);
  return table;
}

absl::StatusOr<LevelTable> OptimalLevels(absl::Span<const float> x, absl::Span<const float> weights,
                                         const UniformGrid& fine, int num_levels) {
  CodeHistogram histogram;
  if (absl::Status s = histogram.Add(x, weights, fine); !s.ok()) return s;
  return histogram.OptimalLevels(num_levels);
}

std::array<uint8_t, 256> SnapTable(absl::Span<const uint8_t> levels) {
  TW_CHECK(!levels.empty());
  std::array<uint8_t, 256> snap;
  size_t at = 0;
  for (int code = 0; code < kCodes; ++code) {
    while (at + 1 < levels.size() && levels[at + 1] - code < code - levels[at]) ++at;
    snap[code] = levels[at];
  }
  return snap;
}

}  // namespace thinwire
