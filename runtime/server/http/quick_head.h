// As much of the head of an HTTP request as it takes to refuse it.
#pragma once

#include <cstddef>
#include <optional>

#include "absl/strings/string_view.h"

namespace thinwire {

// Views into the head.
struct QuickHead {
  absl::string_view method;
  absl::string_view path;
  absl::string_view authorization;  // empty: none
  size_t content_length = 0;
  bool keep_alive = true;
};

// Nothing where a parser has to look closely: another version than HTTP/1.1, a body whose length is
// not told once and plainly, a client that waits for leave to send it, folded lines. `head` ends
// with the line before the empty one.
std::optional<QuickHead> ReadQuickHead(absl::string_view head);

// The bytes of the body behind a head, in the same form; nothing where parsers may disagree on
// where the next request begins: lines that do not end plainly or are folded, names with blanks,
// lengths told twice or otherwise than in digits, chunks, a body of another method than POST.
std::optional<size_t> ReadBodyLength(absl::string_view head);

}  // namespace thinwire
