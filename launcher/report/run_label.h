// What runs are called on a page that shows several.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "launcher/report/run_record.h"

namespace thinwire {

// The last part of a model's folder.
std::string ModelName(const RunRecord& run);

// "tp 2 × pp 1"; of a job split in groups "tp 2 + 1 × pp 1".
std::string MeshName(const RunRecord& run);
std::string TpName(const RunRecord& run);  // "2", "2 + 1"

// One for each run: its strategy, and what else it takes to tell it from the others.
std::vector<std::string> RunLabels(absl::Span<const RunRecord> runs);

// One for each measurement, the same for all sizes of a series: its strategy, and the ranks where
// these differ.
std::vector<std::string> SeriesLabels(absl::Span<const CommRecord> comm);

// At most `max_chars` characters of UTF-8, the last one an ellipsis where there were more.
std::string Shortened(absl::string_view text, size_t max_chars);

}  // namespace thinwire
