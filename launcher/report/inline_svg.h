// An SVG as gnuplot writes it, as part of a page.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// The picture as an <svg> element of HTML: as wide as its place, in the page's font and in the
// colours of palette.h, its ids made distinct by `name`, read aloud as `title` (plain text). It
// refers to nothing outside. Internal if `svg` is no picture of gnuplot's.
absl::StatusOr<std::string> InlineSvg(absl::string_view svg, absl::string_view name,
                                      absl::string_view title);

}  // namespace thinwire
