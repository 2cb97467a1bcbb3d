// A page for people who look at a server, and the numbers that it shows.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "runtime/server/serving_core.h"

namespace thinwire {

// {"model", "version", "layout", "state", "progress", "load": {...}, "totals": {...}, "wire":
// {"logical_bytes", "sent_bytes", "sites": {...}}, "ranks": [...]}.
std::string StatusJson(const ServingCore& core);

// HTML that asks for /status every second and shows it; needs nothing from elsewhere.
std::string StatusPage();

}  // namespace thinwire
