// Sums over a layer's activations on all ranks' calibration windows, formed on the device of the
// pass: the same bytes from 1, 2 and 4 ranks.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "parallel/comm/communicator.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/quant/second_moments.h"
#include "runtime/quantizer/channel_stats.h"
#include "runtime/quantizer/lane_sum.h"
#include "runtime/quantizer/layer_pass.h"

namespace thinwire {

// A layer, as it is to be run on a stream.
struct LayerRun {
  const LayerWeights* weights = nullptr;
  const SiteRoundings* roundings = nullptr;
  const ResidualStream* stream = nullptr;
};

using AllSiteStats = std::array<std::optional<ChannelStats>, kQuantSites.size()>;

// Borrows everything. All but Lanes is collective over `world`. InvalidArgument names the site of
// activations that are NaN or infinite.
class CalibrationSums {
 public:
  // num_windows: of all ranks, where there are several.
  CalibrationSums(const ModelConfig* config, LayerPass* pass, Communicator* world,
                  int64_t num_windows)
      : config_(*config), pass_(*pass), world_(*world), num_windows_(num_windows) {}

  // The rank's windows in runs whose sums are the same with 1, 2 and 4 ranks.
  std::vector<Range> Lanes(const ResidualStream& stream) const {
    if (world_.size() == 1) return LanesOfRank(stream.num_windows, 0, 1);
    return LanesOfRank(num_windows_, world_.rank(), world_.size());
  }

  // Windows of all ranks.
  int64_t TotalWindows(const ResidualStream& stream) const {
    return world_.size() == 1 ? stream.num_windows : num_windows_;
  }

  // A stride that leaves about so many rows of all windows.
  int64_t SampleStride(const ResidualStream& stream, int64_t samples) const;

  // What is asked of a site's activations.
  struct SiteQuery {
    QuantSite site;
    int64_t sample_stride = 0;  // see ChannelStats
    int64_t first = 0;          // rows of a window that are left out
  };
  // Before they are rounded.
  absl::StatusOr<AllSiteStats> Stats(const LayerRun& run, absl::Span<const SiteQuery> queries);

  // Of `run`'s activations at `site`, rounded; with a target, of those of `target`, too, which are
  // not.
  absl::StatusOr<SecondMoments> Moments(QuantSite site, const LayerRun& run,
                                        const LayerRun* target);

  // sums[i] = sum over lanes of `add`'s addends for its windows, [size].
  absl::StatusOr<std::vector<double>> Sum(
      const ResidualStream& stream, int64_t size,
      absl::FunctionRef<absl::Status(Range windows, absl::Span<double> sums)> add);

 private:
  const ModelConfig& config_;
  LayerPass& pass_;
  Communicator& world_;
  const int64_t num_windows_;
};

}  // namespace thinwire
