// Results, on standard output.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// Writes and flushes. A full disk or a closed pipe is an error, so that a script does not take half
// a result for a whole one.
absl::Status WriteOutput(absl::string_view text);

}  // namespace thinwire
