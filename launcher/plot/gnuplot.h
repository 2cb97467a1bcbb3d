// gnuplot, as another process.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// What gnuplot makes of `script` on its standard output. FailedPrecondition: there is no gnuplot;
// Internal: it ended with an error, whose first line the message quotes.
absl::StatusOr<std::string> RunGnuplot(absl::string_view script);

// `text` as a string of a script, on one line, a space before a leading quote.
// Nothing in it is expanded: it may come from a file.
std::string GnuplotString(absl::string_view text);

}  // namespace thinwire
