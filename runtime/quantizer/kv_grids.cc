#include "runtime/quantizer/kv_grids.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/attention/kv_codes.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/quant/bit_allocation.h"
#include "runtime/quant/grid_search.h"

namespace thinwire {
namespace {

constexpr std::array<uint8_t, 6> kWidths = {2, 3, 4, 5, 6, 8};
constexpr int kNumWidths = static_cast<int>(kWidths.size());

int WidthIndex(int bits) {
  return static_cast<int>(std::find(kWidths.begin(), kWidths.end(), bits) - kWidths.begin());
}

// One channel's best grid at each width.
using ChannelGrids = std::array<GridFit, kWidths.size()>;  // by index of the width

// One of K and V of one head.
struct HeadTensor {
  std::vector<int32_t> order;       // [head_dim] channels of the head, most costly first
  std::vector<ChannelGrids> grids;  // [head_dim] by channel of the head
  std::vector<double> costs;        // [num_units, kNumWidths]
};

absl::Status FitChannels(const ChannelStats& stats, std::vector<ChannelGrids>& grids,
                         ThreadPool& pool) {
  grids.resize(stats.width());
  std::vector<absl::Status> statuses(stats.width());
  pool.ParallelForDynamic(stats.width(), [&](int64_t c) {
    const std::vector<float> samples = stats.Samples(c);
    for (int i = 0; i < kNumWidths; ++i) {
      GridFit& best = grids[c][i];
      if (kWidths[i] >= 8) {
        best.grid = GridOfRange(stats.minimum(c), stats.maximum(c), kWidths[i]);
        best.error = GridError(samples, {}, best.grid);
      } else {
        auto fit = SearchGrid(
            samples, {},
            {.bits = kWidths[i], .minimum = stats.minimum(c), .maximum = stats.maximum(c)});
        if (!fit.ok()) {
          statuses[c] = fit.status();
          return;
        }
        best = *fit;
      }
      best.error /= std::max<double>(1.0, static_cast<double>(samples.size()));
    }
  });
  for (const absl::Status& status : statuses) TW_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

HeadTensor MakeHead(const std::vector<ChannelGrids>& grids, const std::vector<double>& weights,
                    int64_t first, int64_t head_dim, int by) {
  HeadTensor head;
  head.grids.assign(grids.begin() + first, grids.begin() + first + head_dim);
  head.order.resize(head_dim);
  std::iota(head.order.begin(), head.order.end(), 0);
  // By what a channel loses at the average width.
  std::stable_sort(head.order.begin(), head.order.end(), [&](int32_t a, int32_t b) {
    return weights[first + a] * head.grids[a][by].error >
           weights[first + b] * head.grids[b][by].error;
  });
  head.costs.assign(head_dim / kKvUnit * kNumWidths, 0.0);
  for (int64_t j = 0; j < head_dim; ++j) {
    const int32_t c = head.order[j];
    for (int b = 0; b < kNumWidths; ++b) {
      head.costs[j / kKvUnit * kNumWidths + b] += weights[first + c] * head.grids[c][b].error;
    }
  }
  return head;
}

// Appends a head to its site. `allocation` says which units get how many bits.
void AppendHead(const HeadTensor& head, const BitAllocation& allocation, SiteCodes& site) {
  const auto head_dim = static_cast<int64_t>(head.order.size());
  const auto first = static_cast<int32_t>(site.order.size());
  if (site.offsets.empty()) site.offsets.push_back(0);
  for (const int32_t unit : allocation.order) {
    const uint8_t bits = allocation.bits[unit];
    for (int64_t j = unit * kKvUnit; j < (unit + 1) * kKvUnit; ++j) {
      const int32_t c = head.order[j];
      const UniformGrid& grid = head.grids[c][WidthIndex(bits)].grid;
      site.order.push_back(first + c);
      site.step.push_back(grid.step);
      site.zero.push_back(grid.zero);
    }
    const auto end = static_cast<int32_t>(site.order.size());
    const bool same_cluster = !site.bits.empty() && site.bits.back() == bits &&
                              site.offsets[site.offsets.size() - 2] >= first;
    if (same_cluster) {
      site.offsets.back() = end;
    } else {
      site.bits.push_back(bits);
      site.offsets.push_back(end);
    }
  }
  TW_CHECK_EQ(static_cast<int64_t>(site.order.size()), first + head_dim);
}

// Scales each head's costs by what the layer was measured to lose with equal widths.
absl::Status CorrectCosts(const KvGridArgs& args, QuantSite site, std::vector<HeadTensor>& heads) {
  const int index = WidthIndex(args.bits);
  SiteCodes equal;
  for (const HeadTensor& head : heads) {
    const auto num_units = static_cast<int32_t>(head.order.size()) / kKvUnit;
    BitAllocation all;
    all.bits.assign(num_units, static_cast<uint8_t>(args.bits));
    all.order.resize(num_units);
    std::iota(all.order.begin(), all.order.end(), 0);
    AppendHead(head, all, equal);
  }
  TW_ASSIGN_OR_RETURN(const std::vector<double> measured, args.measure_loss(site, equal));
  for (size_t h = 0; h < heads.size(); ++h) {
    double expected = 0.0;
    for (size_t u = 0; u < heads[h].costs.size(); u += kNumWidths) {
      expected += heads[h].costs[u + index];
    }
    if (!(expected > 0.0) || !(measured[h] > 0.0)) continue;  // nothing to compare
    for (double& cost : heads[h].costs) cost *= measured[h] / expected;
  }
  return absl::OkStatus();
}

SiteCodes RangeCodes(const ChannelStats& stats, int64_t head_dim, int bits) {
  SiteCodes site;
  site.offsets.push_back(0);
  for (int64_t c = 0; c < stats.width(); ++c) {
    const UniformGrid grid = GridOfRange(stats.minimum(c), stats.maximum(c), bits);
    site.order.push_back(static_cast<int32_t>(c));
    site.step.push_back(grid.step);
    site.zero.push_back(grid.zero);
    if ((c + 1) % head_dim != 0) continue;
    site.bits.push_back(static_cast<uint8_t>(bits));
    site.offsets.push_back(static_cast<int32_t>(c + 1));
  }
  return site;
}

}  // namespace

absl::Status ChooseKvGrids(const KvGridArgs& args, ThreadPool& pool, LayerCodes& codes) {
  const ModelConfig& config = *args.config;
  const int64_t head_dim = config.head_dim;
  const int64_t num_heads = config.num_kv_heads;
  const int64_t group = config.num_heads / num_heads;
  SiteCodes k_site, v_site;
  if (args.bits >= 8) {
    codes.at(QuantSite::kK) = RangeCodes(*args.k, head_dim, args.bits);
    codes.at(QuantSite::kV) = RangeCodes(*args.v, head_dim, args.bits);
    return absl::OkStatus();
  }
  const std::vector<double> column_squares =
      ColumnSquares({args.out}, args.out->in_features, &pool);
  std::vector<double> k_weights(num_heads * head_dim, 0.0), v_weights(k_weights);
  for (int64_t h = 0; h < config.num_heads; ++h) {
    const int64_t kv = h / group * head_dim;
    double value_energy = 0.0;
    for (int64_t c = 0; c < head_dim; ++c) {
      const double square = column_squares[h * head_dim + c];
      v_weights[kv + c] += square;
      value_energy += square * args.v->variance(kv + c);
    }
    for (int64_t c = 0; c < head_dim; ++c) {
      k_weights[kv + c] += args.q->mean_square(h * head_dim + c) / head_dim * value_energy;
    }
  }
  std::vector<ChannelGrids> k_grids, v_grids;
  TW_RETURN_IF_ERROR(FitChannels(*args.k, k_grids, pool));
  TW_RETURN_IF_ERROR(FitChannels(*args.v, v_grids, pool));
  std::vector<HeadTensor> k_heads, v_heads;
  for (int64_t h = 0; h < num_heads; ++h) {
    k_heads.push_back(MakeHead(k_grids, k_weights, h * head_dim, head_dim, WidthIndex(args.bits)));
    v_heads.push_back(MakeHead(v_grids, v_weights, h * head_dim, head_dim, WidthIndex(args.bits)));
  }
  TW_RETURN_IF_ERROR(CorrectCosts(args, QuantSite::kK, k_heads));
  TW_RETURN_IF_ERROR(CorrectCosts(args, QuantSite::kV, v_heads));

  const int64_t num_units = head_dim / kKvUnit;
  const int64_t total = 2 * num_units * args.bits;
  double best_cost = std::numeric_limits<double>::infinity();
  std::vector<BitAllocation> best_k, best_v;
  for (int64_t k_bits = kWidths.front() * num_units; k_bits <= total - kWidths.front() * num_units;
       ++k_bits) {
    if (k_bits > kWidths.back() * num_units || total - k_bits > kWidths.back() * num_units)
      continue;
    std::vector<BitAllocation> k_parts, v_parts;
    double cost = 0.0;
    for (int64_t h = 0; h < num_heads; ++h) {
      TW_ASSIGN_OR_RETURN(BitAllocation k_part,
                          AllocateBits(k_heads[h].costs, num_units, kWidths, k_bits));
      TW_ASSIGN_OR_RETURN(BitAllocation v_part,
                          AllocateBits(v_heads[h].costs, num_units, kWidths, total - k_bits));
      cost += k_part.cost + v_part.cost;
      k_parts.push_back(std::move(k_part));
      v_parts.push_back(std::move(v_part));
    }
    if (cost >= best_cost) continue;
    best_cost = cost;
    best_k = std::move(k_parts);
    best_v = std::move(v_parts);
  }
  for (int64_t h = 0; h < num_heads; ++h) {
    AppendHead(k_heads[h], best_k[h], k_site);
    AppendHead(v_heads[h], best_v[h], v_site);
  }
  codes.at(QuantSite::kK) = std::move(k_site);
  codes.at(QuantSite::kV) = std::move(v_site);
  return absl::OkStatus();
}

}  // namespace thinwire
