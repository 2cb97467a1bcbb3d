#include "runtime/quantizer/calibration_sums.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
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
    AllSiteStats parts;
    for (const SiteQuery& query : queries) {
      parts[static_cast<size_t>(query.site)].emplace(SiteWidth(config_, query.site),
                                                     query.sample_stride);
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
    for (size_t site = 0; site < parts.size(); ++site) {
      if (parts[site].has_value()) sums[site].Add(*std::move(parts[site]));
    }
  }
  AllSiteStats stats;
  for (size_t site = 0; site < stats.size(); ++site) {
    if (asked[site] == nullptr) continue;
    stats[site] = sums[site].Take();
    TW_RETURN_IF_ERROR(stats[site]->MergeOverRanks(world_, pass_.stream()));
  }
  return stats;
}

absl::StatusOr<SecondMoments> CalibrationSums::Moments(QuantSite site, const LayerRun& run,
                                                       const LayerRun* target) {
  const int64_t width = SiteWidth(config_, site);
  const int64_t seqlen = run.stream->seqlen;
  std::vector<float> x(seqlen * width), y(target == nullptr ? 0 : x.size());
  const auto visit = [&](const LayerRun& which, int64_t w, std::vector<float>& to) {
    return pass_.Visit(*which.weights, *which.roundings, which.stream->window(w), site,
                       [&](QuantSite seen, ConstTensorView from) {
                         if (seen != site) return absl::OkStatus();
                         for (int64_t t = 0; t < seqlen; ++t) {
                           std::copy_n(from.data<float>() + t * from.row_stride(), width,
                                       to.begin() + t * width);
                         }
                         return absl::OkStatus();
                       });
  };
  LaneSum<SecondMoments> sums;
  for (const Range& lane : Lanes(*run.stream)) {
    SecondMoments part(width, target != nullptr);
    for (int64_t w = lane.begin; w < lane.end; ++w) {
      if (target != nullptr) TW_RETURN_IF_ERROR(visit(*target, w, y));
      TW_RETURN_IF_ERROR(visit(run, w, x));
      run.roundings->at(site).Apply(TensorView(x.data(), DType::kF32, {seqlen, width}));
      TW_RETURN_IF_ERROR(AtSite(
          part.Add(x.data(), width, target == nullptr ? nullptr : y.data(), width, seqlen, pool_),
          site));
    }
    sums.Add(std::move(part));
  }
  SecondMoments moments = sums.Take();
  TW_RETURN_IF_ERROR(SumOverRanks(moments.mutable_sums(), world_, pass_.stream()));
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
  TW_RETURN_IF_ERROR(SumOverRanks(absl::MakeSpan(total), world_, pass_.stream()));
  return total;
}

}  // namespace thinwire
