#include "runtime/quantizer/calibration_sums.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/quantizer/device_sums.h"
#include "runtime/quantizer/rank_exchange.h"

namespace thinwire {
namespace {

absl::Status AtSite(const absl::Status& status, QuantSite site) {
  return status.ok() ? status : Annotate(status, absl::StrCat("activations of ", SiteName(site)));
}

// Numbers that LaneSum adds.
struct Numbers {
  std::vector<double> values;

  void Merge(const Numbers& other) {
    for (size_t i = 0; i < values.size(); ++i) values[i] += other.values[i];
  }
};

}  // namespace

int64_t CalibrationSums::SampleStride(const ResidualStream& stream, int64_t samples) const {
  return std::max<int64_t>(1, TotalWindows(stream) * stream.seqlen / samples);
}

absl::StatusOr<AllSiteStats> CalibrationSums::Stats(const LayerRun& run,
                                                    absl::Span<const SiteQuery> queries) {
  std::array<const SiteQuery*, kQuantSites.size()> asked = {};
  QuantSite last = kQuantSites.front();
  for (const SiteQuery& query : queries) {
    asked[static_cast<size_t>(query.site)] = &query;
    last = std::max(last, query.site);
  }
  std::array<LaneSum<ChannelStats>, kQuantSites.size()> sums;
  for (const Range& lane : Lanes(*run.stream)) {
    std::array<std::optional<DeviceStats>, kQuantSites.size()> parts;
    for (const SiteQuery& query : queries) {
      TW_ASSIGN_OR_RETURN(
          parts[static_cast<size_t>(query.site)],
          DeviceStats::Create(SiteWidth(config_, query.site), query.sample_stride, pass_.stream()));
    }
    for (int64_t w = lane.begin; w < lane.end; ++w) {
      TW_RETURN_IF_ERROR(
          pass_.Visit(*run.weights, *run.roundings, run.stream->window(w), last,
                      [&](QuantSite site, ConstTensorView x) {
                        const SiteQuery* const query = asked[static_cast<size_t>(site)];
                        if (query == nullptr) return absl::OkStatus();
                        return AtSite(parts[static_cast<size_t>(site)]->Add(x, query->first), site);
                      }));
    }
    for (const QuantSite site : kQuantSites) {
      std::optional<DeviceStats>& part = parts[static_cast<size_t>(site)];
      if (!part.has_value()) continue;
      absl::StatusOr<ChannelStats> stats = part->Take();
      if (!stats.ok()) return AtSite(stats.status(), site);
      sums[static_cast<size_t>(site)].Add(*std::move(stats));
    }
  }
  AllSiteStats stats;
  for (size_t site = 0; site < stats.size(); ++site) {
    if (asked[site] == nullptr) continue;
    stats[site] = sums[site].Take();
    TW_RETURN_IF_ERROR(stats[site]->MergeOverRanks(world_, pass_.host()));
  }
  return stats;
}

absl::StatusOr<SecondMoments> CalibrationSums::Moments(QuantSite site, const LayerRun& run,
                                                       const LayerRun* target) {
  const int64_t width = SiteWidth(config_, site);
  TW_ASSIGN_OR_RETURN(Tensor x, pass_.AllocateRows(width));
  Tensor y;
  if (target != nullptr) {
    TW_ASSIGN_OR_RETURN(y, pass_.AllocateRows(width));
  }
  LaneSum<DeviceMoments> sums;
  for (const Range& lane : Lanes(*run.stream)) {
    TW_ASSIGN_OR_RETURN(DeviceMoments part,
                        DeviceMoments::Create(width, target != nullptr, pass_.stream()));
    for (int64_t w = lane.begin; w < lane.end; ++w) {
      if (target != nullptr) {
        TW_RETURN_IF_ERROR(pass_.Capture(*target->weights, *target->roundings,
                                         target->stream->window(w), site, y.mutable_view()));
      }
      TW_RETURN_IF_ERROR(pass_.Capture(*run.weights, *run.roundings, run.stream->window(w), site,
                                       x.mutable_view()));
      TW_RETURN_IF_ERROR(pass_.Round(site, *run.roundings, x.mutable_view()));
      TW_RETURN_IF_ERROR(AtSite(part.Add(x.view(), y.view()), site));
    }
    sums.Add(std::move(part));
  }
  absl::StatusOr<SecondMoments> moments = sums.Take().Take();
  if (!moments.ok()) return AtSite(moments.status(), site);
  TW_RETURN_IF_ERROR(SumOverRanks(moments->mutable_sums(), world_, pass_.host()));
  return moments;
}

absl::StatusOr<std::vector<double>> CalibrationSums::Sum(
    const ResidualStream& stream, int64_t size,
    absl::FunctionRef<absl::Status(Range windows, absl::Span<double> sums)> add) {
  LaneSum<Numbers> sums;
  for (const Range& lane : Lanes(stream)) {
    Numbers part = {std::vector<double>(static_cast<size_t>(size))};
    TW_RETURN_IF_ERROR(add(lane, absl::MakeSpan(part.values)));
    sums.Add(std::move(part));
  }
  std::vector<double> total = sums.Take().values;
  TW_RETURN_IF_ERROR(SumOverRanks(absl::MakeSpan(total), world_, pass_.host()));
  return total;
}

}  // namespace thinwire
