// One HTML page about what crossed the ranks' links.
#pragma once

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "launcher/report/run_record.h"

namespace thinwire {

// Makes an SVG of a gnuplot script, see RunGnuplot.
using DrawFn = absl::FunctionRef<absl::StatusOr<std::string>(absl::string_view script)>;

// The whole document: refers to nothing outside itself. Strings of the recordings appear as text,
// whatever is in them. `version`: of this program. Errors are those of `draw`.
absl::StatusOr<std::string> WirePage(const Recordings& recordings, absl::string_view version,
                                     DrawFn draw);

}  // namespace thinwire
