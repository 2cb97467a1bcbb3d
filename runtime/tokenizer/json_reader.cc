#include "runtime/tokenizer/json_reader.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"

namespace thinwire {

using nlohmann::json;

bool JsonReader::Has(absl::string_view key) const {
  if (!value_->is_object()) return false;
  const auto found = value_->find(std::string(key));
  return found != value_->end() && !found->is_null();
}

absl::StatusOr<JsonReader> JsonReader::Get(absl::string_view key) const {
  if (!value_->is_object()) return Expected("an object");
  const auto found = value_->find(std::string(key));
  if (found == value_->end()) {
    return absl::InvalidArgumentError(absl::StrCat(place_, ": no key \"", key, "\""));
  }
  const char* separator = !place_.empty() && place_.back() == ' ' ? "" : ".";
  return JsonReader(&*found, absl::StrCat(place_, separator, key));
}

absl::StatusOr<std::vector<JsonReader>> JsonReader::Elements() const {
  if (!value_->is_array()) return Expected("an array");
  std::vector<JsonReader> elements;
  elements.reserve(value_->size());
  for (const json& element : *value_) {
    elements.emplace_back(&element, absl::StrCat(place_, "[", elements.size(), "]"));
  }
  return elements;
}

absl::StatusOr<std::string> JsonReader::AsString() const {
  if (!value_->is_string()) return Expected("a string");
  return value_->get<std::string>();
}

absl::StatusOr<int64_t> JsonReader::AsInt() const {
  if (!value_->is_number_integer()) return Expected("an integer");
  return value_->get<int64_t>();
}

absl::StatusOr<std::string> JsonReader::GetString(absl::string_view key) const {
  TW_ASSIGN_OR_RETURN(const JsonReader member, Get(key));
  return member.AsString();
}

absl::StatusOr<int64_t> JsonReader::GetInt(absl::string_view key) const {
  TW_ASSIGN_OR_RETURN(const JsonReader member, Get(key));
  return member.AsInt();
}

absl::StatusOr<std::vector<JsonReader>> JsonReader::GetElements(absl::string_view key) const {
  TW_ASSIGN_OR_RETURN(const JsonReader member, Get(key));
  return member.Elements();
}

absl::StatusOr<std::string> JsonReader::GetStringOr(absl::string_view key,
                                                    absl::string_view fallback) const {
  if (!Has(key)) return std::string(fallback);
  return GetString(key);
}

absl::StatusOr<bool> JsonReader::GetBoolOr(absl::string_view key, bool fallback) const {
  if (!Has(key)) return fallback;
  TW_ASSIGN_OR_RETURN(const JsonReader member, Get(key));
  if (!member.value().is_boolean()) return member.Expected("true or false");
  return member.value().get<bool>();
}

absl::Status JsonReader::Expected(absl::string_view what) const {
  return absl::InvalidArgumentError(
      absl::StrCat(place_, ": expected ", what, ", found ", DescribeJson(*value_)));
}

absl::Status JsonReader::Unsupported(absl::string_view what, absl::string_view list) const {
  return absl::UnimplementedError(
      absl::StrCat(place_, ": ", what, " is not supported; supported: ", list));
}

}  // namespace thinwire
