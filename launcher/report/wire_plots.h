// Pictures of runs and of collectives, as scripts for InlineSvg.
#pragma once

#include <string>

#include "absl/types/span.h"
#include "launcher/report/run_record.h"

namespace thinwire {

// A bar for each run: transfer, codec, the rest.
std::string StepPlot(absl::Span<const RunRecord> runs, absl::Span<const std::string> labels);

// A numbered point for each run: bytes per token across, tokens/s up.
std::string TradePlot(absl::Span<const RunRecord> runs);

// Latency against size, both logarithmic: p50 as lines, up to p99 as whiskers. `series` has one
// entry for each record, a number from 0. Some record has a latency.
std::string LatencyPlot(absl::Span<const CommRecord> comm, absl::Span<const int> series);

}  // namespace thinwire
