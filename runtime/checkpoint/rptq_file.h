// rptq.safetensors: how the activations of each layer are put in order and coded (RPTQ, Yuan et
// al., arXiv 2304.01089). It lies beside a model.safetensors whose tensors are all in the model's
// own channel order; a loader applies the orders.
//
// The bytes: a safetensors file. Its __metadata__ is
//   "format": "thinwire-rptq-1"    a reader refuses other numbers as not implemented
//   "tp": "4"                      down_in is ordered inside as many equal blocks; "0": as a whole
// and its tensors, for layer l = 0, 1, ... and SITE one of qkv_in, q, k, v, out_in, mlp_in,
// down_in, each `layers.{l}.{SITE}.` and
//   order    I32 [width]           position j holds channel order[j]
//   offsets  I32 [clusters + 1]    cluster c is the positions [offsets[c], offsets[c + 1])
//   bits     U8  [clusters]
//   step     F32 [width]           by position; absent where bits are 16
//   zero     F32 [width]           by position; absent where bits are 16
//   range    F32 [2, width]        by position: least and greatest activation seen; may be absent
//   original_range  F32 [2, width] by channel: the same in the model as it came; may be absent
//   levels   U8  [16]              absent if the levels are all those of the bits
//   gain     U8  [1]               1: "rms", 2: "max"; absent: ""
// All or none of order, offsets and bits are there; none: the site is neither reordered nor coded,
// and has no other tensors. Ranges are for people to look at: nothing is computed from them.
// 4-byte tensors come first; in each part the order is that of layers, sites and this list.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quant_scheme.h"

namespace thinwire {

// One site of one layer. width: as QuantSite says.
struct SiteCodes {
  // [width]; position j holds channel order[j]. A permutation; of q, k, v and out_in inside each
  // head, of down_in inside each of the file's tp blocks. Empty: the site is left alone, and all
  // other members are empty, too.
  std::vector<int32_t> order;
  // [num_clusters + 1] positions, ascending from 0 to width. No cluster of codes spans two heads or
  // blocks.
  std::vector<int32_t> offsets;
  // [num_clusters]; 1 to 8, or 16 in all of them: the site is only reordered.
  std::vector<uint8_t> bits;
  // [width] by position, or empty where not coded: x ~= step (code - zero), code an integer in
  // [0, 2^bits). Steps > 0; zeros need not be integers.
  std::vector<float> step, zero;
  // [16], ascending, or empty. Not empty: bits are 4, `step` is that of 256 levels, and a code is
  // an index into the 16 of them that are in use.
  std::vector<uint8_t> levels;
  // "": none. "rms", "max": x is divided by a statistic of its row first, and multiplied after.
  std::string gain;
  // [width] by position, or empty: the range of the activations over the calibration tokens, in the
  // units of `step`, so as the folded model has them.
  std::vector<float> minimum, maximum;
  // [width] by channel, or empty: the range in the model as it came, before anything was folded.
  std::vector<float> original_minimum, original_maximum;

  bool empty() const { return order.empty(); }
  bool coded() const { return !step.empty(); }
  bool has_range() const { return !minimum.empty(); }
  bool has_original_range() const { return !original_minimum.empty(); }
  int64_t num_clusters() const { return static_cast<int64_t>(bits.size()); }

  friend bool operator==(const SiteCodes&, const SiteCodes&) = default;
};

struct LayerCodes {
  std::array<SiteCodes, kQuantSites.size()> sites;

  const SiteCodes& at(QuantSite site) const { return sites[static_cast<size_t>(site)]; }
  SiteCodes& at(QuantSite site) { return sites[static_cast<size_t>(site)]; }

  friend bool operator==(const LayerCodes&, const LayerCodes&) = default;
};

inline constexpr char kRptqFileName[] = "rptq.safetensors";

// Channels of `site`: hidden, ffn, or heads * head_dim.
int64_t SiteWidth(const ModelConfig& config, QuantSite site);

// Channels that stay together at `site`: head_dim; of down_in ffn / tp (tp 0 or 1: ffn); of norm
// outputs hidden. tp must divide ffn.
int64_t SiteBlock(const ModelConfig& config, QuantSite site, int tp);

// Mean bits of a channel over the site's positions; 16 of an empty site.
double MeanBits(const SiteCodes& codes);

struct RptqFile {
  int tp = 0;                      // blocks of down_in; 0: not cut into blocks
  std::vector<LayerCodes> layers;  // [num_layers]
};

// Checks everything that SiteCodes promises, for a model of this config. `context` (a path) begins
// the messages, which name tensor (so layer and site), expected and found. InvalidArgument.
absl::Status CheckRptq(const RptqFile& file, const ModelConfig& config, absl::string_view context);

// Reads dir/rptq.safetensors. Errors besides CheckRptq's and SafetensorsFile::Open's (NotFound: no
// such file): Unimplemented for another format version; InvalidArgument for tensors that are
// missing, unknown, or of another shape or dtype.
absl::StatusOr<RptqFile> ReadRptqFile(const std::string& dir, const ModelConfig& config);

// Writes dir/rptq.safetensors, all or nothing; equal content gives equal bytes. Errors: CheckRptq's
// (nothing is written), and the file system's, which name the path.
absl::Status WriteRptqFile(const std::string& dir, const RptqFile& file, const ModelConfig& config);

}  // namespace thinwire
