#include "runtime/json/json_member.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace thinwire {

using nlohmann::json;

absl::Status CheckJsonDepth(absl::string_view text) {
  constexpr int64_t kMaxDepth = 64;
  int64_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if ((c == '[' || c == '{') && ++depth > kMaxDepth) {
      return absl::InvalidArgumentError(absl::StrCat("nested JSON: expected at most ", kMaxDepth,
                                                     " levels, found more at byte ", i));
    }
  }
  return absl::OkStatus();
}

std::string JsonExcerpt(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 40) text = text.substr(0, 37) + "...";
  return text;
}

absl::Status UnexpectedMember(absl::string_view name, absl::string_view expected,
                              const json& found) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\": expected ", expected, ", found ", JsonExcerpt(found)));
}

const json* FindMember(const json& object, const char* name) {
  const auto it = object.find(name);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::Status ReadMember(const json& object, const char* name, int64_t low, int64_t high,
                        int64_t& out) {
  const json* value = FindMember(object, name);
  if (value == nullptr) return absl::OkStatus();
  const bool fits =
      value->is_number_integer() &&
      !(value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(high)) &&
      value->get<int64_t>() >= low && value->get<int64_t>() <= high;
  if (!fits) {
    return UnexpectedMember(name, absl::StrCat("an integer from ", low, " to ", high), *value);
  }
  out = value->get<int64_t>();
  return absl::OkStatus();
}

absl::Status ReadMember(const json& object, const char* name, float& out) {
  const json* value = FindMember(object, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_number()) return UnexpectedMember(name, "a number", *value);
  out = value->get<float>();
  return absl::OkStatus();
}

absl::Status ReadMember(const json& object, const char* name, bool& out) {
  const json* value = FindMember(object, name);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_boolean()) return UnexpectedMember(name, "true or false", *value);
  out = value->get<bool>();
  return absl::OkStatus();
}

}  // namespace thinwire
