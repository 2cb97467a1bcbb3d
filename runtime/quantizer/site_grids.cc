#include "runtime/quantizer/site_grids.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/codes/codes.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/quant/grid_search.h"
#include "runtime/quant/level_table.h"

namespace thinwire {
namespace {

// Channels that share a step.
constexpr int64_t kClusterChannels = 32;
constexpr int kStepCandidates = 24;

// The code of 0 where a gain stretches codes by kMaxGainCodes to both sides.
constexpr float kGainZero = 128.0f;

std::vector<int32_t> OrderByImportance(const SiteGridArgs& args,
                                       const std::vector<double>& squares) {
  const ModelConfig& config = *args.config;
  const int64_t width = args.stats->width();
  std::vector<double> importance(width);
  for (int64_t c = 0; c < width; ++c) importance[c] = args.stats->variance(c) * squares[c];
  std::vector<int32_t> order(width);
  std::iota(order.begin(), order.end(), 0);
  // Without a place to put an order in, channels stay where they are.
  const bool norm_output = args.site == QuantSite::kQkvIn || args.site == QuantSite::kMlpIn;
  if (!args.act_order || (!config.norm_before && norm_output)) return order;
  const int64_t block = SiteBlock(config, args.site, args.tp);
  if (args.site == QuantSite::kOutIn) {
    const int64_t group = config.num_heads / config.num_kv_heads;
    for (int64_t h = 0; h < config.num_heads; ++h) {
      const int64_t first_head = h / group * group;
      for (int64_t c = 0; c < block; ++c) {
        if (h != first_head) importance[first_head * block + c] += importance[h * block + c];
      }
    }
    for (int64_t h = 0; h < config.num_heads; ++h) {
      const int64_t first_head = h / group * group;
      for (int64_t c = 0; c < block; ++c) {
        importance[h * block + c] = importance[first_head * block + c];
      }
    }
  }
  for (int64_t begin = 0; begin < width; begin += block) {
    std::stable_sort(order.begin() + begin, order.begin() + begin + block,
                     [&](int32_t a, int32_t b) { return importance[a] > importance[b]; });
  }
  return order;
}

// The channel's grid with a given step, its range in the middle of the codes.
float CentredZero(float minimum, float maximum, float step, int bits) {
  const auto levels = static_cast<float>((1 << bits) - 1);
  return -minimum / step + 0.5f * (levels - (maximum - minimum) / step);
}

// Replaces 16 uniform levels by 16 of 255 around 0, and lets a gain stretch them over what each
// token has: the levels that lose least on the sampled tokens.
absl::Status ChooseLevels(const SiteGridArgs& args, const std::vector<double>& squares,
                          SiteCodes& site) {
  TW_CHECK_EQ(args.bits, 4);
  const ChannelStats& stats = *args.stats;
  const int64_t width = stats.width();
  CodeHistogram histogram;
  std::vector<float> codes(width), weights(width);
  for (int64_t i = 0; i < stats.num_samples(); ++i) {
    const absl::Span<const float> row = stats.SampleRow(i);
    float gain = 0.0f;
    for (int64_t j = 0; j < width; ++j) {
      codes[j] = row[site.order[j]] / site.step[j];
      gain = std::max(gain, std::abs(codes[j]) / kMaxGainCodes);
    }
    if (gain == 0.0f) continue;
    for (int64_t j = 0; j < width; ++j) {
      codes[j] /= gain;
      const double step = double{gain} * double{site.step[j]};
      weights[j] = static_cast<float>(squares[site.order[j]] * step * step);
    }
    TW_RETURN_IF_ERROR(histogram.Add(codes, weights, {.step = 1.0f, .zero = kGainZero, .bits = 8}));
  }
  site.levels = histogram.OptimalLevels(16).levels;
  std::fill(site.zero.begin(), site.zero.end(), kGainZero);
  site.gain = "max";
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SiteCodes> ChooseSiteGrid(const SiteGridArgs& args, ThreadPool& pool) {
  const ChannelStats& stats = *args.stats;
  const int64_t width = stats.width();
  const std::vector<double> squares = ColumnSquares(args.readers, width, &pool);
  SiteCodes site;
  site.order = OrderByImportance(args, squares);
  site.offsets.push_back(0);
  const int64_t block = SiteBlock(*args.config, args.site, args.tp);
  const int64_t group = args.group_size > 0 ? args.group_size : width;
  for (int64_t begin = 0; begin < width;) {
    // A cluster ends with its block, its weight group, or after enough channels.
    const int64_t end = std::min({width, (begin / block + 1) * block, (begin / group + 1) * group,
                                  begin + (args.bits >= 16 ? group : kClusterChannels)});
    site.offsets.push_back(static_cast<int32_t>(end));
    site.bits.push_back(static_cast<uint8_t>(args.bits));
    begin = end;
  }
  if (args.bits >= 16) return site;

  site.step.resize(width);
  site.zero.resize(width);
  pool.ParallelForDynamic(site.num_clusters(), [&](int64_t cluster) {
    const int32_t begin = site.offsets[cluster];
    const int32_t end = site.offsets[cluster + 1];
    float largest = 0.0f;
    for (int32_t j = begin; j < end; ++j) {
      const int32_t c = site.order[j];
      const UniformGrid grid = GridOfRange(stats.minimum(c), stats.maximum(c), args.bits);
      if (stats.maximum(c) > stats.minimum(c)) largest = std::max(largest, grid.step);
    }
    if (largest == 0.0f) largest = 1.0f;  // constant channels alone: their zeros say it all
    float step = largest;
    std::vector<float> zeros(end - begin);
    for (int32_t j = begin; j < end; ++j) {
      const int32_t c = site.order[j];
      zeros[j - begin] = CentredZero(stats.minimum(c), stats.maximum(c), step, args.bits);
    }
    if (args.bits < 8) {
      const std::vector<float> steps = GeometricSteps(0.05f * largest, largest, kStepCandidates);
      std::vector<double> errors(steps.size(), 0.0);
      for (int32_t j = begin; j < end; ++j) {
        const int32_t c = site.order[j];
        const std::vector<double> channel = StepErrors(stats.Samples(c), {}, args.bits, steps);
        for (size_t s = 0; s < steps.size(); ++s) errors[s] += squares[c] * channel[s];
      }
      step = steps[std::min_element(errors.begin(), errors.end()) - errors.begin()];
      for (int32_t j = begin; j < end; ++j) {
        zeros[j - begin] = FitZero(stats.Samples(site.order[j]), {}, args.bits, step).grid.zero;
      }
    }
    for (int32_t j = begin; j < end; ++j) {
      site.step[j] = step;
      site.zero[j] = zeros[j - begin];
    }
  });
  if (args.levels) TW_RETURN_IF_ERROR(ChooseLevels(args, squares, site));
  return site;
}

absl::StatusOr<SiteCodes> ChooseChannelGrids(const ChannelStats& stats, int64_t block, int bits,
                                             ThreadPool& pool) {
  const int64_t width = stats.width();
  SiteCodes site;
  site.order.resize(width);
  std::iota(site.order.begin(), site.order.end(), 0);
  site.offsets.push_back(0);
  for (int64_t end = block; end <= width; end += block) {
    site.offsets.push_back(static_cast<int32_t>(end));
    site.bits.push_back(static_cast<uint8_t>(bits));
  }
  site.step.resize(width);
  site.zero.resize(width);
  std::vector<absl::Status> statuses(width);
  pool.ParallelForDynamic(width, [&](int64_t c) {
    UniformGrid grid = GridOfRange(stats.minimum(c), stats.maximum(c), bits);
    if (bits < 8) {
      auto fit = SearchGrid(stats.Samples(c), {}, {.bits = bits});
      statuses[c] = fit.status();
      if (fit.ok()) grid = fit->grid;
    }
    site.step[c] = grid.step;
    site.zero[c] = grid.zero;
  });
  for (const absl::Status& status : statuses) TW_RETURN_IF_ERROR(status);
  return site;
}

void RecordRanges(const ChannelStats& stats, const ChannelStats& original, SiteCodes& site) {
  if (site.empty()) return;
  const std::vector<float> minima = stats.Minima(), maxima = stats.Maxima();
  site.minimum.clear();
  site.maximum.clear();
  for (const int32_t channel : site.order) {
    site.minimum.push_back(minima[channel]);
    site.maximum.push_back(maxima[channel]);
  }
  site.original_minimum = original.Minima();
  site.original_maximum = original.Maxima();
}

}  // namespace thinwire
