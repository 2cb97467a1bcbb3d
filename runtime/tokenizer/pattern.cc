#include "runtime/tokenizer/pattern.h"

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"

namespace thinwire {

Pattern Pattern::Literal(absl::string_view text) {
  Pattern pattern;
  pattern.literal_ = std::string(text);
  return pattern;
}

absl::StatusOr<Pattern> Pattern::Native(absl::string_view expression) {
  Pattern pattern;
  TW_ASSIGN_OR_RETURN(pattern.regex_, Regex::CompileNative(expression));
  return pattern;
}

absl::StatusOr<Pattern> Pattern::Read(const JsonReader& component) {
  TW_ASSIGN_OR_RETURN(const JsonReader json, component.Get("pattern"));
  Pattern pattern;
  if (json.Has("String")) {
    TW_ASSIGN_OR_RETURN(pattern.literal_, json.GetString("String"));
    if (pattern.literal_.empty()) return json.Expected("a pattern that is not empty");
    return pattern;
  }
  if (json.Has("Regex")) {
    TW_ASSIGN_OR_RETURN(const std::string expression, json.GetString("Regex"));
    absl::StatusOr<Regex> regex = Regex::Compile(expression);
    if (!regex.ok()) return Annotate(regex.status(), json.place());
    pattern.regex_ = *std::move(regex);
    return pattern;
  }
  return json.Expected("{\"String\": ...} or {\"Regex\": ...}");
}

absl::Status Pattern::FindAll(absl::string_view text, std::vector<ByteRange>* matches) const {
  if (regex_.has_value()) return regex_->FindAll(text, matches);
  for (size_t at = text.find(literal_); at != absl::string_view::npos;
       at = text.find(literal_, at + literal_.size())) {
    matches->push_back({at, at + literal_.size()});
  }
  return absl::OkStatus();
}

absl::Status Pattern::ReplaceAll(absl::string_view content, std::string* text) const {
  std::vector<ByteRange> matches;
  TW_RETURN_IF_ERROR(FindAll(*text, &matches));
  if (matches.empty()) return absl::OkStatus();
  const absl::string_view from = *text;
  std::string result;
  result.reserve(from.size());
  size_t done = 0;
  for (const ByteRange& match : matches) {
    absl::StrAppend(&result, from.substr(done, match.begin - done), content);
    done = match.end;
  }
  absl::StrAppend(&result, from.substr(done));
  *text = std::move(result);
  return absl::OkStatus();
}

}  // namespace thinwire
