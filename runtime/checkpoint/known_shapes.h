// Shapes of published models, by name: what their config.json says.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace thinwire {

// "opt-66b", "llama-2-70b", ...; in the order in which messages list them.
std::vector<absl::string_view> KnownShapeNames();

// The config.json of a shape, as far as it decides sizes. NotFound quotes the name and lists those
// that are known.
absl::StatusOr<nlohmann::json> KnownShapeConfig(absl::string_view name);

}  // namespace thinwire
