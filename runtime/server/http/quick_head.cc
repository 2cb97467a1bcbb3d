#include "runtime/server/http/quick_head.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace thinwire {
namespace {

// Takes the next line off `text`, without its end; nothing where that is not "\r\n".
std::optional<absl::string_view> TakeLine(absl::string_view& text) {
  const size_t end = text.find('\n');
  absl::string_view line = text.substr(0, end);
  text.remove_prefix(end == absl::string_view::npos ? text.size() : end + 1);
  if (line.empty() || line.back() != '\r') return std::nullopt;
  line.remove_suffix(1);
  if (line.empty() || line.find('\r') != absl::string_view::npos) return std::nullopt;
  return line;
}

bool AllDigits(absl::string_view text) {
  for (const char c : text) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) return false;
  }
  return !text.empty();
}

}  // namespace

std::optional<QuickHead> ReadQuickHead(absl::string_view head) {
  constexpr absl::string_view kVersion = " HTTP/1.1";
  const std::optional<absl::string_view> first = TakeLine(head);
  if (!first.has_value() || !absl::EndsWith(*first, kVersion)) return std::nullopt;
  QuickHead out;
  const absl::string_view request = first->substr(0, first->size() - kVersion.size());
  const size_t space = request.find(' ');
  if (space == absl::string_view::npos) return std::nullopt;
  out.method = request.substr(0, space);
  out.path = request.substr(space + 1);
  bool has_length = false;
  while (!head.empty()) {
    const std::optional<absl::string_view> line = TakeLine(head);
    if (!line.has_value() || line->front() == ' ' || line->front() == '\t') return std::nullopt;
    const size_t colon = line->find(':');
    if (colon == absl::string_view::npos || colon == 0) return std::nullopt;
    const absl::string_view name = line->substr(0, colon);
    const absl::string_view value = absl::StripAsciiWhitespace(line->substr(colon + 1));
    if (absl::EqualsIgnoreCase(name, "content-length")) {
      if (has_length || !AllDigits(value) || !absl::SimpleAtoi(value, &out.content_length)) {
        return std::nullopt;
      }
      has_length = true;
    } else if (absl::EqualsIgnoreCase(name, "authorization")) {
      if (!out.authorization.empty()) return std::nullopt;
      out.authorization = value;
    } else if (absl::EqualsIgnoreCase(name, "connection")) {
      out.keep_alive = absl::EqualsIgnoreCase(value, "keep-alive");
    } else if (absl::EqualsIgnoreCase(name, "transfer-encoding") ||
               absl::EqualsIgnoreCase(name, "expect") || absl::EqualsIgnoreCase(name, "upgrade") ||
               absl::StripAsciiWhitespace(name) != name) {
      return std::nullopt;
    }
  }
  if (!has_length) return std::nullopt;
  return out;
}

std::optional<size_t> ReadBodyLength(absl::string_view head) {
  const std::optional<absl::string_view> first = TakeLine(head);
  if (!first.has_value()) return std::nullopt;
  size_t length = 0;
  bool has_length = false;
  while (!head.empty()) {
    const std::optional<absl::string_view> line = TakeLine(head);
    if (!line.has_value()) return std::nullopt;
    const absl::string_view name = line->substr(0, line->find(':'));
    if (name.empty() || name.size() == line->size()) return std::nullopt;
    if (absl::StripAsciiWhitespace(name) != name) return std::nullopt;
    if (absl::EqualsIgnoreCase(name, "transfer-encoding")) return std::nullopt;
    if (!absl::EqualsIgnoreCase(name, "content-length")) continue;
    const absl::string_view value = absl::StripAsciiWhitespace(line->substr(name.size() + 1));
    if (has_length || !AllDigits(value) || !absl::SimpleAtoi(value, &length)) return std::nullopt;
    has_length = true;
  }
  if (length > 0 && !absl::StartsWith(*first, "POST ")) return std::nullopt;
  return length;
}

}  // namespace thinwire
