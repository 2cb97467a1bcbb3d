#include "runtime/quantizer/reference_quantizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/quant/cholesky.h"
#include "runtime/quant/gptq.h"
#include "runtime/quant/grid_search.h"
#include "runtime/quant/kmeans.h"
#include "runtime/quant/second_moments.h"
#include "runtime/quantizer/channel_stats.h"
#include "runtime/quantizer/device_sums.h"
#include "runtime/quantizer/ordered_linear.h"
#include "runtime/quantizer/rank_exchange.h"
#include "runtime/quantizer/site_grids.h"

namespace thinwire {
namespace {

constexpr int64_t kSiteClusters = 32;
constexpr int64_t kHeadClusters = 4;
constexpr double kDamping = 0.01;

constexpr std::array<QuantSite, 4> kLinearSites = {QuantSite::kQkvIn, QuantSite::kOutIn,
                                                   QuantSite::kMlpIn, QuantSite::kDownIn};

absl::Status AtSite(const absl::Status& status, QuantSite site) {
  return status.ok() ? status : Annotate(status, absl::StrCat("activations of ", SiteName(site)));
}

// Clusters one block of channels by their features, [count, num_features], and appends it.
absl::Status AppendClusters(const std::vector<double>& features, int64_t num_features,
                            int64_t num_clusters, uint64_t seed, SiteCodes& site) {
  TW_ASSIGN_OR_RETURN(const KMeansResult result,
                      KMeans(features, num_features, {.num_clusters = num_clusters, .seed = seed}));
  const ClusterOrder clusters = OrderByLabels(result.labels);
  const auto first = static_cast<int32_t>(site.order.size());
  if (site.offsets.empty()) site.offsets.push_back(0);
  for (const int32_t channel : clusters.order) site.order.push_back(first + channel);
  for (size_t c = 1; c < clusters.offsets.size(); ++c) {
    site.offsets.push_back(first + clusters.offsets[c]);
  }
  return absl::OkStatus();
}

// The clusters of another site's head, for a head of this one.
void AppendSameClusters(const SiteCodes& from, int64_t from_first, int64_t count, SiteCodes& site) {
  const auto first = static_cast<int32_t>(site.order.size());
  if (site.offsets.empty()) site.offsets.push_back(0);
  for (int64_t j = 0; j < count; ++j) {
    site.order.push_back(static_cast<int32_t>(from.order[from_first + j] - from_first + first));
  }
  for (const int32_t offset : from.offsets) {
    if (offset > from_first && offset <= from_first + count) {
      site.offsets.push_back(static_cast<int32_t>(offset - from_first + first));
    }
  }
}

}  // namespace

struct ReferenceQuantizer::Work {
  const ResidualStream* input;
  LayerWeights weights;
  std::array<std::optional<ChannelStats>, kQuantSites.size()> stats;
  std::array<std::optional<SecondMoments>, kQuantSites.size()> moments;  // of linear sites
  LayerResult result;

  ChannelStats& Stats(QuantSite site) { return *stats[static_cast<size_t>(site)]; }
};

absl::StatusOr<LayerResult> ReferenceQuantizer::Quantize(const DenseLayer& dense,
                                                         const ResidualStream& input) {
  Work work;
  work.input = &input;
  TW_ASSIGN_OR_RETURN(work.weights, ToLayerWeights(dense, pass_.stream()));
  std::array<std::optional<DeviceStats>, kQuantSites.size()> sums;
  for (const QuantSite site : kQuantSites) {
    TW_ASSIGN_OR_RETURN(sums[static_cast<size_t>(site)],
                        DeviceStats::Create(SiteWidth(config_, site), 0, pass_.stream()));
  }
  const SiteRoundings none;
  for (int64_t w = 0; w < input.num_windows; ++w) {
    TW_RETURN_IF_ERROR(pass_.Visit(work.weights, none, input.window(w), QuantSite::kDownIn,
                                   [&](QuantSite site, ConstTensorView x) {
                                     return AtSite(sums[static_cast<size_t>(site)]->Add(x), site);
                                   }));
  }
  for (const QuantSite site : kQuantSites) {
    absl::StatusOr<ChannelStats> stats = sums[static_cast<size_t>(site)]->Take();
    if (!stats.ok()) return AtSite(stats.status(), site);
    TW_RETURN_IF_ERROR(stats->MergeOverRanks(world_, pass_.host()));
    work.stats[static_cast<size_t>(site)] = *std::move(stats);
  }
  TW_RETURN_IF_ERROR(ClusterSites(work));
  TW_RETURN_IF_ERROR(MeasureRanges(work));
  if (options_.scheme.weight_format() == WeightFormat::kGptq) {
    TW_RETURN_IF_ERROR(QuantizeWeights(dense, work));
  }
  for (const QuantSite site : kQuantSites) {
    RecordRanges(work.Stats(site), work.Stats(site), work.result.codes.at(site));
  }
  work.result.attention_norm = dense.attention_norm;
  work.result.mlp_norm = dense.mlp_norm;
  for (const LinearRole role : kLinearRoles) work.result.bias(role) = dense.at(role).bias;
  return std::move(work.result);
}

absl::Status ReferenceQuantizer::ClusterSites(Work& work) const {
  LayerCodes& codes = work.result.codes;
  const int64_t head_dim = config_.head_dim;
  const int64_t group = config_.num_heads / config_.num_kv_heads;
  if (!clustered_) {
    for (const QuantSite site : kQuantSites) {
      SiteCodes& one = codes.at(site);
      const int64_t width = SiteWidth(config_, site);
      // The format keeps clusters inside heads and blocks; the step is the same in all of them.
      const int64_t block = SiteBlock(config_, site, options_.tp);
      one.order.resize(width);
      std::iota(one.order.begin(), one.order.end(), 0);
      for (int64_t offset = 0; offset <= width; offset += block) {
        one.offsets.push_back(static_cast<int32_t>(offset));
      }
    }
    return absl::OkStatus();
  }
  const auto range_features = [&](QuantSite site) {
    std::vector<double> features;
    const ChannelStats& stats = work.Stats(site);
    for (int64_t c = 0; c < stats.width(); ++c) {
      features.push_back(stats.maximum(c));
      features.push_back(stats.minimum(c));
    }
    return features;
  };
  for (const QuantSite site : {QuantSite::kQkvIn, QuantSite::kMlpIn, QuantSite::kDownIn}) {
    const std::vector<double> features = range_features(site);
    const int64_t block = SiteBlock(config_, site, options_.tp);
    const int64_t width = SiteWidth(config_, site);
    for (int64_t begin = 0; begin < width; begin += block) {
      TW_RETURN_IF_ERROR(AppendClusters(
          {features.begin() + 2 * begin, features.begin() + 2 * (begin + block)}, 2,
          std::max<int64_t>(1, kSiteClusters * block / width), seed_, codes.at(site)));
    }
  }
  const ChannelStats& q = work.Stats(QuantSite::kQ);
  const ChannelStats& k = work.Stats(QuantSite::kK);
  const ChannelStats& out = work.Stats(QuantSite::kOutIn);
  for (int64_t h = 0; h < config_.num_kv_heads; ++h) {
    std::vector<double> qk_features, out_features;
    for (int64_t c = 0; c < head_dim; ++c) {
      const auto extremes = [&](const ChannelStats& stats) {
        double maximum = -std::numeric_limits<double>::infinity();
        double minimum = std::numeric_limits<double>::infinity();
        for (int64_t i = h * group; i < (h + 1) * group; ++i) {
          maximum = std::max<double>(maximum, stats.maximum(i * head_dim + c));
          minimum = std::min<double>(minimum, stats.minimum(i * head_dim + c));
        }
        return std::pair(maximum, minimum);
      };
      const auto [q_maximum, q_minimum] = extremes(q);
      const auto [out_maximum, out_minimum] = extremes(out);
      for (const double feature : {q_maximum, double{k.maximum(h * head_dim + c)}, q_minimum,
                                   double{k.minimum(h * head_dim + c)}}) {
        qk_features.push_back(feature);
      }
      out_features.push_back(out_maximum);
      out_features.push_back(out_minimum);
    }
    TW_RETURN_IF_ERROR(
        AppendClusters(qk_features, 4, kHeadClusters, seed_, codes.at(QuantSite::kK)));
    TW_RETURN_IF_ERROR(
        AppendClusters(out_features, 2, kHeadClusters, seed_, codes.at(QuantSite::kV)));
    for (int64_t i = 0; i < group; ++i) {
      AppendSameClusters(codes.at(QuantSite::kK), h * head_dim, head_dim, codes.at(QuantSite::kQ));
      AppendSameClusters(codes.at(QuantSite::kV), h * head_dim, head_dim,
                         codes.at(QuantSite::kOutIn));
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceQuantizer::MeasureRanges(Work& work) const {
  LayerCodes& codes = work.result.codes;
  const bool weights = options_.scheme.weight_format() == WeightFormat::kGptq;
  // [window][cluster]: minimum, maximum; sites one after the other.
  std::vector<float> minima, maxima;
  int64_t num_clusters = 0;
  for (SiteCodes& site : codes.sites) {
    num_clusters += clustered_ ? static_cast<int64_t>(site.offsets.size()) - 1 : 1;
  }
  std::array<std::optional<DeviceMoments>, kQuantSites.size()> sums;
  if (weights) {
    for (const QuantSite site : kLinearSites) {
      TW_ASSIGN_OR_RETURN(sums[static_cast<size_t>(site)],
                          DeviceMoments::Create(SiteWidth(config_, site), false, pass_.stream()));
    }
  }
  const SiteRoundings none;
  for (int64_t w = 0; w < work.input->num_windows; ++w) {
    const auto visit = [&](QuantSite seen, ConstTensorView x) -> absl::Status {
      const SiteCodes& site = codes.at(seen);
      TW_ASSIGN_OR_RETURN(DeviceStats rows, DeviceStats::Create(x.dim(1), 0, pass_.stream()));
      TW_RETURN_IF_ERROR(rows.Add(x));
      TW_ASSIGN_OR_RETURN(const ChannelStats window, rows.Take());
      const size_t clusters = clustered_ ? site.offsets.size() - 1 : 1;
      for (size_t c = 0; c < clusters; ++c) {
        const int64_t begin = clustered_ ? site.offsets[c] : 0;
        const int64_t end = clustered_ ? site.offsets[c + 1] : x.dim(1);
        float minimum = std::numeric_limits<float>::infinity(), maximum = -minimum;
        for (int64_t j = begin; j < end; ++j) {
          minimum = std::min(minimum, window.minimum(site.order[j]));
          maximum = std::max(maximum, window.maximum(site.order[j]));
        }
        minima.push_back(minimum);
        maxima.push_back(maximum);
      }
      auto& moments = sums[static_cast<size_t>(seen)];
      return moments.has_value() ? moments->Add(x, {}) : absl::OkStatus();
    };
    TW_RETURN_IF_ERROR(
        pass_.Visit(work.weights, none, work.input->window(w), QuantSite::kDownIn, visit));
  }
  for (size_t site = 0; site < sums.size(); ++site) {
    if (!sums[site].has_value()) continue;
    TW_ASSIGN_OR_RETURN(work.moments[site], sums[site]->Take());
    TW_RETURN_IF_ERROR(SumOverRanks(work.moments[site]->mutable_sums(), world_, pass_.host()));
  }
  // A moving average depends on the order: all windows in theirs.
  TW_ASSIGN_OR_RETURN(minima, ConcatenateOverRanks(minima, world_, pass_.host()));
  TW_ASSIGN_OR_RETURN(maxima, ConcatenateOverRanks(maxima, world_, pass_.host()));
  std::vector<EmaRange> ranges(num_clusters);
  for (size_t i = 0; i < minima.size(); ++i) ranges[i % num_clusters].Add(minima[i], maxima[i]);

  size_t next = 0;
  for (const QuantSite kind : kQuantSites) {
    SiteCodes& site = codes.at(kind);
    const int bits = SiteBits(options_.scheme, kind);
    const size_t clusters = site.offsets.size() - 1;
    const size_t first_range = next;
    next += clustered_ ? clusters : 1;
    const bool ordered =
        std::find(kLinearSites.begin(), kLinearSites.end(), kind) != kLinearSites.end();
    if (bits >= 16 && !(ordered && weights)) {
      site = SiteCodes();
      continue;
    }
    site.bits.assign(clusters, static_cast<uint8_t>(std::min(bits, 16)));
    if (bits >= 16) continue;
    site.step.resize(site.order.size());
    site.zero.resize(site.order.size());
    for (size_t c = 0; c < clusters; ++c) {
      const EmaRange& range = ranges[first_range + (clustered_ ? c : 0)];
      const UniformGrid grid = PublishedGrid(range.minimum(), range.maximum(), bits);
      for (int32_t j = site.offsets[c]; j < site.offsets[c + 1]; ++j) {
        site.step[j] = grid.step;
        site.zero[j] = grid.zero;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReferenceQuantizer::QuantizeWeights(const DenseLayer& dense, Work& work) const {
  for (const LinearRole role : kLinearRoles) {
    const DenseLinear& linear = dense.at(role);
    if (linear.empty()) continue;
    const QuantSite kind = InputSite(role);
    const SiteCodes& site = work.result.codes.at(kind);
    const SecondMoments& moments = *work.moments[static_cast<size_t>(kind)];
    const std::vector<double> hessian =
        InOrder(moments.Hessian(/*centred=*/false, &pool_), site.order, pool_);
    std::vector<double> factor = hessian;
    double damping = kDamping;
    while (true) {
      factor = hessian;
      DampHessian(Damping::kMeanDiagonal, damping, linear.in_features, absl::MakeSpan(factor));
      const absl::Status status =
          UpperFactorOfInverse(linear.in_features, absl::MakeSpan(factor), gpu_);
      if (status.ok()) break;
      damping *= 10.0;
      if (damping > 1e3) return status;
    }
    const std::vector<float> weights = ColumnsInOrder(linear, site.order, pool_);
    const std::vector<int32_t> groups =
        clustered_ ? site.offsets : GroupOffsets(linear.in_features, options_.group_size);
    TW_ASSIGN_OR_RETURN(
        GptqResult result,
        Gptq({.out_features = linear.out_features,
              .in_features = linear.in_features,
              .weights = weights,
              .hessian = hessian,
              .factor = factor,
              .group_offsets = groups},
             {.bits = options_.scheme.weight_bits, .static_groups = clustered_}, pool_, gpu_));
    work.result.errors[static_cast<size_t>(role)] = result.relative_error;
    work.result.weight(role) = std::move(result.codes);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
