// Members of a JSON object that a stranger wrote, a line of a file or the body of a request: absent
// and null are alike, and what is of another type is InvalidArgument: `"name": expected ..., found
// ...`, with a short excerpt of what is there. (JsonFields is for files of a model, whose messages
// have a context.)
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace thinwire {

// InvalidArgument where arrays and objects of `text` are nested deeper than 64 levels. Before it is
// parsed: what the JSON library does with a parsed value takes stack for each level of it.
absl::Status CheckJsonDepth(absl::string_view text);

// A short, one-line rendering of a value.
std::string JsonExcerpt(const nlohmann::json& value);

// The error of this kind.
absl::Status UnexpectedMember(absl::string_view name, absl::string_view expected,
                              const nlohmann::json& found);

// The member of an object, or null when it is absent or null.
const nlohmann::json* FindMember(const nlohmann::json& object, const char* name);

// An integer in [low, high]; a number; true or false. `out` stays as it is where there is none.
absl::Status ReadMember(const nlohmann::json& object, const char* name, int64_t low, int64_t high,
                        int64_t& out);
absl::Status ReadMember(const nlohmann::json& object, const char* name, float& out);
absl::Status ReadMember(const nlohmann::json& object, const char* name, bool& out);

}  // namespace thinwire
