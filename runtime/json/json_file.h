// JSON files of a model folder: reading with positions in errors, and typed access to fields.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace thinwire {

// `text` in double quotes, control characters escaped, cut after 120 bytes: one line of a message.
std::string QuotedForMessage(absl::string_view text);

// Parses the whole file at `path`. Errors name the path: those of MappedFile::Open; InvalidArgument
// with line and column of a syntax error; InvalidArgument for a key that occurs twice in one
// object, because readers disagree on which one counts.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// A value as messages show it: scalars as they are written in JSON, "an array", "an object".
std::string DescribeJson(const nlohmann::json& value);

// Fields of one JSON object by name and type. A field that is null counts as absent.
// Every error is InvalidArgument and reads `context: "key": expected ..., found ...`.
// Borrows the object, which must outlive it.
class JsonFields {
 public:
  // `context`: the file, and the place in it below the top level. InvalidArgument if `value` is not
  // an object.
  static absl::StatusOr<JsonFields> Create(const nlohmann::json& value, std::string context);

  // Whether the field is there and not null.
  bool Has(absl::string_view key) const;

  // Whether the field is there, null included.
  bool Mentions(absl::string_view key) const;

  // The value, or null if absent.
  const nlohmann::json* Get(absl::string_view key) const;

  // An integer (2.0 is none) in [min, max].
  absl::StatusOr<int64_t> Int(absl::string_view key, int64_t min = 1,
                              int64_t max = std::numeric_limits<int64_t>::max()) const;
  absl::StatusOr<int64_t> IntOr(absl::string_view key, int64_t absent, int64_t min = 1,
                                int64_t max = std::numeric_limits<int64_t>::max()) const;

  // A number, integers included, that is finite and > 0.
  absl::StatusOr<double> PositiveDouble(absl::string_view key) const;
  absl::StatusOr<double> PositiveDoubleOr(absl::string_view key, double absent) const;

  absl::StatusOr<bool> BoolOr(absl::string_view key, bool absent) const;

  absl::StatusOr<std::string> String(absl::string_view key) const;
  absl::StatusOr<std::string> StringOr(absl::string_view key, absl::string_view absent) const;

  // The object in the field; Has(key) must hold.
  absl::StatusOr<JsonFields> Object(absl::string_view key) const;

  // The error of this class, for values that a caller checks further.
  absl::Status Expected(absl::string_view key, absl::string_view expected) const;

  const std::string& context() const { return context_; }

 private:
  JsonFields(const nlohmann::json* object, std::string context);

  const nlohmann::json* object_;
  std::string context_;
};

}  // namespace thinwire
