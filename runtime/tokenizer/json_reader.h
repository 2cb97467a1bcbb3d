// Typed access to JSON values with errors that say where: file and path of the value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace thinwire {

// A borrowed JSON value and its place ("tokenizer.json: model.merges[3]"), which every error
// message starts with. Wrong types and missing keys are InvalidArgument.
class JsonReader {
 public:
  JsonReader(const nlohmann::json* value, std::string place)
      : value_(value), place_(std::move(place)) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& place() const { return place_; }

  // True for a key that is there and not null. False when this is no object.
  bool Has(absl::string_view key) const;

  // A member that must be there (it may be null).
  absl::StatusOr<JsonReader> Get(absl::string_view key) const;

  // The elements of an array.
  absl::StatusOr<std::vector<JsonReader>> Elements() const;

  absl::StatusOr<std::string> AsString() const;
  absl::StatusOr<int64_t> AsInt() const;

  // Members that must be there.
  absl::StatusOr<std::string> GetString(absl::string_view key) const;
  absl::StatusOr<int64_t> GetInt(absl::string_view key) const;
  absl::StatusOr<std::vector<JsonReader>> GetElements(absl::string_view key) const;

  // Members that may be missing or null.
  absl::StatusOr<std::string> GetStringOr(absl::string_view key, absl::string_view fallback) const;
  absl::StatusOr<bool> GetBoolOr(absl::string_view key, bool fallback) const;

  // "PLACE: expected WHAT, found VALUE", the value shortened.
  absl::Status Expected(absl::string_view what) const;

  // Unimplemented: "PLACE: WHAT is not supported; supported: LIST".
  absl::Status Unsupported(absl::string_view what, absl::string_view list) const;

 private:
  const nlohmann::json* value_;
  std::string place_;
};

}  // namespace thinwire
