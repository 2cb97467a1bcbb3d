// The "pattern" of Replace and Split components: {"String": "..."} or {"Regex": "..."}.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/regex.h"

namespace thinwire {

// Immutable.
class Pattern {
 public:
  static Pattern Literal(absl::string_view text);

  // A regular expression in PCRE2's own syntax.
  static absl::StatusOr<Pattern> Native(absl::string_view expression);

  // Reads the member "pattern" of a component. InvalidArgument for an empty string.
  static absl::StatusOr<Pattern> Read(const JsonReader& component);

  // The literal; empty for a regular expression.
  const std::string& literal() const { return literal_; }

  // Appends the non-overlapping matches in `text`, from left to right.
  absl::Status FindAll(absl::string_view text, std::vector<ByteRange>* matches) const;

  // Replaces every match by `content`.
  absl::Status ReplaceAll(absl::string_view content, std::string* text) const;

 private:
  Pattern() = default;

  std::string literal_;
  std::optional<Regex> regex_;
};

}  // namespace thinwire
