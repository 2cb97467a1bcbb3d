// Regular expressions of tokenizer.json: Oniguruma's syntax, matched by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace thinwire {

// A half-open range of bytes.
struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
};

// A word character as Rust's regular expressions define \w, in PCRE2's syntax, to be put inside
// brackets.
inline constexpr char kRustWordCharacters[] =
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";

// Rewrites an expression in Oniguruma's (Ruby's) syntax so that PCRE2 matches the same text: \s,
// \d, \w and \b by Unicode property, \h as a hexadecimal digit, option m as "dot matches newline".
// Unimplemented: nested character classes, class intersection (&&), \W inside a class, an interval
// followed by "+". Not carried over: case folding of one character into several (the sharp s
// against "ss").
absl::StatusOr<std::string> TranslateRegex(absl::string_view pattern);

// A compiled expression. Immutable, hence thread-safe; movable.
class Regex {
 public:
  // Compiles an expression in Oniguruma's syntax; InvalidArgument quotes it and says what is wrong.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);

  // Compiles an expression in PCRE2's own syntax.
  static absl::StatusOr<Regex> CompileNative(absl::string_view pattern);

  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // Appends all non-overlapping matches in `text` (well-formed UTF-8), from left to right. An empty
  // match counts unless it touches the end of the match before it. ResourceExhausted when PCRE2
  // gives up on an expression that backtracks too much.
  absl::Status FindAll(absl::string_view text, std::vector<ByteRange>* matches) const;

 private:
  struct Code;
  explicit Regex(std::unique_ptr<Code> code);

  std::unique_ptr<Code> code_;
};

}  // namespace thinwire
