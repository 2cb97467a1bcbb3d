// A picture of the bytes at each site, as a script for InlineSvg.
#pragma once

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "launcher/report/run_record.h"

namespace thinwire {

// The sites of all runs, in the order of a step.
std::vector<std::string> SiteNames(absl::Span<const RunRecord> runs);

// Bars of bytes per token at each site, one colour a run, each before that of fp16. Sites of layers
// per layer if all runs know their number. Some run has a site.
std::string SitePlot(absl::Span<const RunRecord> runs);

}  // namespace thinwire
