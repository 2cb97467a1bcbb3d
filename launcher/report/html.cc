#include "launcher/report/html.h"

#include "absl/strings/str_cat.h"

namespace thinwire {

std::string EscapeHtml(absl::string_view text) {
  std::string html;
  html.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        absl::StrAppend(&html, "&amp;");
        break;
      case '<':
        absl::StrAppend(&html, "&lt;");
        break;
      case '>':
        absl::StrAppend(&html, "&gt;");
        break;
      case '"':
        absl::StrAppend(&html, "&quot;");
        break;
      default:
        html += static_cast<unsigned char>(c) < ' ' || c == '\x7f' ? ' ' : c;
    }
  }
  return html;
}

}  // namespace thinwire
