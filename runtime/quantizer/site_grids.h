// Order and codes of what linear layers read.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/core/thread_pool.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/rptq_file.h"
#include "runtime/quantizer/channel_stats.h"
#include "runtime/quantizer/dense_layer.h"

namespace thinwire {

struct SiteGridArgs {
  const ModelConfig* config = nullptr;
  QuantSite site = QuantSite::kQkvIn;  // a site that linear layers read
  int bits = 16;                       // 16: order only
  int64_t group_size = 128;            // of the weights that read the site
  bool act_order = true;               // false: channels stay where they are
  int tp = 0;
  bool levels = false;                  // with 4 bits: 16 of 256 levels, wherever they lose least
  const ChannelStats* stats = nullptr;  // with samples where bits < 8
  std::vector<const DenseLinear*> readers;
};

// Order: channels by their share of the outputs' variance, most first, as far as the site's blocks
// allow (a head, a tensor-parallel part of ffn, anything else freely); query heads that share
// values share an order. Weight groups then hold channels of a kind, and GPTQ settles the important
// ones first.
//
// Codes: a zero for each channel and a step for each cluster of up to 32 channels of one weight
// group, since integer sums need one factor. 8 bits: ranges of all tokens. Below: the steps of
// least squared error, weighted by the columns that read the channel.
absl::StatusOr<SiteCodes> ChooseSiteGrid(const SiteGridArgs& args, ThreadPool& pool);

// Channels each with a grid of its own, in their own order: what is consumed on the spot (queries).
absl::StatusOr<SiteCodes> ChooseChannelGrids(const ChannelStats& stats, int64_t block, int bits,
                                             ThreadPool& pool);

// Records the ranges of the activations that the site's codes are for, and of the same activations
// in the model as it came (in the model's order of channels), for those who look at the checkpoint.
// Nothing where the site is left alone.
void RecordRanges(const ChannelStats& stats, const ChannelStats& original, SiteCodes& site);

}  // namespace thinwire
