// A picture of a site's activations: the range of each channel, before and after quantisation (as
// figures 1 and 2 of RPTQ, Yuan et al., arXiv 2304.01089).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/quantisation.h"

namespace thinwire {

struct RangePlotArgs {
  std::string dir;  // of the checkpoint: in messages, and its last part in the title
  const ModelConfig* config = nullptr;
  const Quantisation* quantisation = nullptr;
  int64_t layer = 0;
  std::string site;  // a SiteName; empty: the layer's first site with ranges
};

// A gnuplot script that draws an SVG to standard output. OutOfRange: no such layer;
// InvalidArgument: no such site (the message lists them); FailedPrecondition: the checkpoint has no
// ranges of it.
absl::StatusOr<std::string> RangePlotScript(const RangePlotArgs& args);

}  // namespace thinwire
