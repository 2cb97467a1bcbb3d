#define PCRE2_CODE_UNIT_WIDTH 8

#include "runtime/tokenizer/regex.h"

#include <pcre2.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/check.h"
#include "kernels/core/status_macros.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

// PCRE2's own \s has U+180E too, and its \w lacks marks: spell the sets out. They stand inside
// brackets.
constexpr char kSpace[] =
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";
constexpr char kNotSpace[] =
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{"
    "2027}"
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
constexpr char kWord[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe";

class Translator {
 public:
  explicit Translator(absl::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) TW_RETURN_IF_ERROR(in_class_ ? ClassItem() : Item());
    return std::move(out_);
  }

 private:
  char Peek(size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  void Copy(size_t count) {
    absl::StrAppend(&out_, in_.substr(at_, count));
    at_ += count;
  }

  // Copies an escape that means the same in both, with its argument: "\\p{L}".
  absl::Status CopyEscape() {
    const bool takes_argument = absl::ascii_isalpha(Peek(1)) && Peek(2) == '{';
    const size_t end = takes_argument ? in_.find('}', at_) : absl::string_view::npos;
    Copy(end == absl::string_view::npos ? 2 : end + 1 - at_);
    return absl::OkStatus();
  }

  absl::Status Unsupported(absl::string_view what) const {
    return absl::UnimplementedError(
        absl::StrCat("regular expression \"", in_, "\": ", what, " is not supported"));
  }

  // Replaces a two-character escape.
  absl::Status Escape(absl::string_view replacement) {
    absl::StrAppend(&out_, replacement);
    at_ += 2;
    return absl::OkStatus();
  }

  absl::Status Item() {
    switch (in_[at_]) {
      case '\\':
        switch (Peek(1)) {
          case 's':
            return Escape(absl::StrCat("[", kSpace, "]"));
          case 'S':
            return Escape(absl::StrCat("[^", kSpace, "]"));
          case 'd':
            return Escape("\\p{Nd}");
          case 'D':
            return Escape("\\P{Nd}");
          case 'h':
            return Escape("[0-9a-fA-F]");
          case 'H':
            return Escape("[^0-9a-fA-F]");
          case 'w':
            return Escape(absl::StrCat("[", kWord, "]"));
          case 'W':
            return Escape(absl::StrCat("[^", kWord, "]"));
          case 'b':
            return Escape(absl::StrCat("(?:(?<=[", kWord, "])(?![", kWord, "])|(?<![", kWord,
                                       "])(?=[", kWord, "]))"));
          case 'B':
            return Escape(absl::StrCat("(?:(?<=[", kWord, "])(?=[", kWord, "])|(?<![", kWord,
                                       "])(?![", kWord, "]))"));
          default:
            return CopyEscape();
        }
      case '[':
        in_class_ = true;
        Copy(Peek(1) == '^' ? 2 : 1);
        if (at_ < in_.size() && in_[at_] == ']') Copy(1);
        return absl::OkStatus();
      case '(':
        return Group();
      case '{':
        if (Peek(1) == ',') {
          absl::StrAppend(&out_, "{0,");
          at_ += 2;
        } else {
          Copy(1);
        }
        return absl::OkStatus();
      case '}':
        if (Peek(1) == '+') return Unsupported("an interval followed by \"+\"");
        Copy(1);
        return absl::OkStatus();
      default:
        Copy(1);
        return absl::OkStatus();
    }
  }

  absl::Status Group() {
    Copy(1);
    if (at_ >= in_.size() || in_[at_] != '?') return absl::OkStatus();
    const size_t end = in_.find_first_not_of("imx-", at_ + 1);
    if (end == absl::string_view::npos || (in_[end] != ':' && in_[end] != ')')) {
      return absl::OkStatus();
    }
    for (; at_ < end; ++at_) out_.push_back(in_[at_] == 'm' ? 's' : in_[at_]);
    return absl::OkStatus();
  }

  absl::Status ClassItem() {
    switch (in_[at_]) {
      case '\\':
        switch (Peek(1)) {
          case 's':
            return Escape(kSpace);
          case 'S':
            return Escape(kNotSpace);
          case 'd':
            return Escape("\\p{Nd}");
          case 'D':
            return Escape("\\P{Nd}");
          case 'h':
            return Escape("0-9a-fA-F");
          case 'H':
            return Escape("\\x00-/:-@G-`g-\\x{10ffff}");
          case 'w':
            return Escape(kWord);
          case 'W':
            return Unsupported("\\W inside a character class");
          default:
            return CopyEscape();
        }
      case '[': {
        if (Peek(1) != ':') return Unsupported("a nested character class");
        const size_t end = in_.find(":]", at_ + 2);
        if (end == absl::string_view::npos) return Unsupported("a nested character class");
        Copy(end + 2 - at_);
        return absl::OkStatus();
      }
      case '&':
        if (Peek(1) == '&') return Unsupported("character class intersection");
        Copy(1);
        return absl::OkStatus();
      case ']':
        in_class_ = false;
        Copy(1);
        return absl::OkStatus();
      default:
        Copy(1);
        return absl::OkStatus();
    }
  }

  absl::string_view in_;
  size_t at_ = 0;
  std::string out_;
  bool in_class_ = false;
};

std::string ErrorText(int code) {
  PCRE2_UCHAR text[256];
  if (pcre2_get_error_message(code, text, sizeof(text)) < 0) return absl::StrCat("error ", code);
  return reinterpret_cast<const char*>(text);
}

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

absl::StatusOr<std::string> TranslateRegex(absl::string_view pattern) {
  return Translator(pattern).Run();
}

struct Regex::Code {
  explicit Code(pcre2_code* code) : compiled(code) {}
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(compiled); }

  pcre2_code* compiled;
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  TW_ASSIGN_OR_RETURN(const std::string native, TranslateRegex(pattern));
  absl::StatusOr<Regex> regex = CompileNative(native);
  if (!regex.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("regular expression \"", pattern, "\": ", regex.status().message()));
  }
  return regex;
}

absl::StatusOr<Regex> Regex::CompileNative(absl::string_view pattern) {
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  TW_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, context.get());
  if (compiled == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(ErrorText(error), " at \"", pattern.substr(offset), "\""));
  }
  // Where there is no just-in-time compiler, pcre2_match interprets.
  (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
  return Regex(std::make_unique<Code>(compiled));
}

absl::Status Regex::FindAll(absl::string_view text, std::vector<ByteRange>* matches) const {
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create_from_pattern(code_->compiled, nullptr));
  TW_CHECK(data != nullptr);
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data() != nullptr ? text.data() : "");
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
  size_t from = 0;
  size_t last_end = std::string::npos;
  while (from <= text.size()) {
    int found = pcre2_match(code_->compiled, subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                            data.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its state on the heap
      found = pcre2_match(code_->compiled, subject, text.size(), from,
                          PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(), nullptr);
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      return absl::ResourceExhaustedError(absl::StrCat("regular expression failed on a text of ",
                                                       text.size(), " bytes: ", ErrorText(found)));
    }
    const ByteRange match{bounds[0], bounds[1]};
    if (match.end <= match.begin && match.end == last_end) {
      if (match.end >= text.size()) break;
      from = match.end + unicode::CharSize(text.substr(match.end));
      continue;
    }
    from = last_end = match.end;
    if (match.begin <= match.end) matches->push_back(match);
  }
  return absl::OkStatus();
}

}  // namespace thinwire
