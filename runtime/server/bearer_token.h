// The secret that clients of a listener must know.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// The first line of a file. InvalidArgument: shorter than 16 bytes, or other than printable ASCII.
absl::StatusOr<std::string> ReadBearerToken(const std::string& path);

// OK if `token` is empty, or `authorization` is "Bearer " and the token; else Unauthenticated.
// Takes as long for every wrong token of the right length.
absl::Status CheckBearerToken(absl::string_view authorization, absl::string_view token);

}  // namespace thinwire
