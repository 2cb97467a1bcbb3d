// Text as HTML.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace thinwire {

// `text` (UTF-8) as text of an element or as an attribute's value in double quotes. Control
// characters become spaces.
std::string EscapeHtml(absl::string_view text);

}  // namespace thinwire
