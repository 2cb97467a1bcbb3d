// The page's tables, as HTML.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "launcher/report/run_record.h"

namespace thinwire {

// The number of a run or series, from 0, on its colour, as text that pictures repeat.
std::string NumberBadge(size_t index);

// A row for each run: what ran, how fast, what it sent.
std::string RunTable(absl::Span<const RunRecord> runs, absl::Span<const std::string> labels);

// A row for each site of a run, and one for their sum.
std::string SiteTable(const RunRecord& run);

// A row for each measurement; `series` as for LatencyPlot.
std::string CommTable(absl::Span<const CommRecord> comm, absl::Span<const int> series);

}  // namespace thinwire
