#include "runtime/tokenizer/pre_tokenizer.h"

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/byte_alphabet.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

// GPT-2's expression: contractions, words, numbers, other symbols (each with a space before),
// whitespace.
constexpr char kByteLevelExpression[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}

  absl::Status Apply(PieceList* list) const override {
    for (const auto& step : steps_) TW_RETURN_IF_ERROR(step->Apply(list));
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, std::optional<Regex> words)
      : add_prefix_space_(add_prefix_space), words_(std::move(words)) {}

  absl::Status Apply(PieceList* list) const override {
    if (add_prefix_space_) {
      RewritePieces(
          [](absl::string_view piece, bool, std::string* text) {
            if (piece[0] != ' ') text->push_back(' ');
            absl::StrAppend(text, piece);
          },
          list);
    }
    if (words_.has_value()) {
      TW_RETURN_IF_ERROR(SplitPieces(
          [this](absl::string_view text, std::vector<ByteRange>* matches) {
            return words_->FindAll(text, matches);
          },
          SplitBehavior::kIsolated, /*invert=*/false, list));
    }
    RewritePieces(
        [](absl::string_view piece, bool, std::string* text) { BytesToAlphabet(piece, text); },
        list);
    return absl::OkStatus();
  }

 private:
  bool add_prefix_space_;
  std::optional<Regex> words_;
};

class Split : public PreTokenizer {
 public:
  Split(Pattern pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  absl::Status Apply(PieceList* list) const override {
    return SplitPieces(
        [this](absl::string_view text, std::vector<ByteRange>* matches) {
          return pattern_.FindAll(text, matches);
        },
        behavior_, invert_, list);
  }

 private:
  Pattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

// Cuts at characters of a class.
class SplitAtCharacters : public PreTokenizer {
 public:
  SplitAtCharacters(bool (*is_match)(uint32_t), SplitBehavior behavior)
      : is_match_(is_match), behavior_(behavior) {}

  absl::Status Apply(PieceList* list) const override {
    return SplitPieces(
        [this](absl::string_view text, std::vector<ByteRange>* matches) {
          for (size_t at = 0; at < text.size();) {
            const size_t size = unicode::CharSize(text.substr(at));
            if (is_match_(unicode::DecodeChar(text.substr(at)))) {
              matches->push_back({at, at + size});
            }
            at += size;
          }
          return absl::OkStatus();
        },
        behavior_, /*invert=*/false, list);
  }

 private:
  bool (*is_match_)(uint32_t);
  SplitBehavior behavior_;
};

class Metaspace : public PreTokenizer {
 public:
  enum class Prepend { kNever, kFirst, kAlways };

  Metaspace(std::string replacement, Prepend prepend, bool split)
      : replacement_(std::move(replacement)), prepend_(prepend), split_(split) {}

  absl::Status Apply(PieceList* list) const override {
    RewritePieces(
        [this](absl::string_view piece, bool at_start, std::string* text) {
          const bool wanted =
              prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && at_start);
          if (wanted && piece[0] != ' ' && !absl::StartsWith(piece, replacement_)) {
            *text += replacement_;
          }
          absl::StrAppend(text, absl::StrReplaceAll(piece, {{" ", replacement_}}));
        },
        list);
    if (!split_) return absl::OkStatus();
    return SplitPieces(
        [pattern = Pattern::Literal(replacement_)](absl::string_view text,
                                                   std::vector<ByteRange>* matches) {
          return pattern.FindAll(text, matches);
        },
        SplitBehavior::kMergedWithNext, /*invert=*/false, list);
  }

 private:
  std::string replacement_;
  Prepend prepend_;
  bool split_;
};

absl::StatusOr<std::unique_ptr<PreTokenizer>> ReadSequence(const JsonReader& json) {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> elements, json.GetElements("pretokenizers"));
  for (const JsonReader& element : elements) {
    TW_ASSIGN_OR_RETURN(steps.emplace_back(), ReadPreTokenizer(element));
  }
  return std::make_unique<Sequence>(std::move(steps));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> ReadByteLevel(const JsonReader& json) {
  TW_ASSIGN_OR_RETURN(const bool add_prefix_space, json.GetBoolOr("add_prefix_space", true));
  TW_ASSIGN_OR_RETURN(const bool use_regex, json.GetBoolOr("use_regex", true));
  std::optional<Regex> words;
  if (use_regex) {
    TW_ASSIGN_OR_RETURN(words, Regex::Compile(kByteLevelExpression));
  }
  return std::make_unique<ByteLevel>(add_prefix_space, std::move(words));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> ReadMetaspace(const JsonReader& json) {
  TW_ASSIGN_OR_RETURN(std::string replacement, json.GetString("replacement"));
  if (replacement.empty() || unicode::CharSize(replacement) != replacement.size()) {
    return json.Expected("a replacement of one character");
  }
  // Older files have add_prefix_space instead of prepend_scheme.
  TW_ASSIGN_OR_RETURN(const bool add_prefix_space, json.GetBoolOr("add_prefix_space", true));
  TW_ASSIGN_OR_RETURN(const std::string scheme,
                      json.GetStringOr("prepend_scheme", add_prefix_space ? "always" : "never"));
  TW_ASSIGN_OR_RETURN(const bool split, json.GetBoolOr("split", true));
  Metaspace::Prepend prepend = Metaspace::Prepend::kNever;
  if (scheme == "always") {
    prepend = Metaspace::Prepend::kAlways;
  } else if (scheme == "first") {
    prepend = Metaspace::Prepend::kFirst;
  } else if (scheme != "never") {
    return json.Unsupported("prepend_scheme " + scheme, "first, always, never");
  }
  return std::make_unique<Metaspace>(std::move(replacement), prepend, split);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> ReadPreTokenizer(const JsonReader& json) {
  if (json.value().is_null()) {
    return std::make_unique<Sequence>(std::vector<std::unique_ptr<PreTokenizer>>());
  }
  TW_ASSIGN_OR_RETURN(const std::string type, json.GetString("type"));
  if (type == "Sequence") return ReadSequence(json);
  if (type == "ByteLevel") return ReadByteLevel(json);
  if (type == "Metaspace") return ReadMetaspace(json);
  if (type == "Split") {
    TW_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Read(json));
    TW_ASSIGN_OR_RETURN(const SplitBehavior behavior, ReadSplitBehavior(json));
    TW_ASSIGN_OR_RETURN(const bool invert, json.GetBoolOr("invert", false));
    return std::make_unique<Split>(std::move(pattern), behavior, invert);
  }
  if (type == "Digits") {
    TW_ASSIGN_OR_RETURN(const bool individual, json.GetBoolOr("individual_digits", false));
    return std::make_unique<SplitAtCharacters>(
        unicode::IsNumeric, individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  }
  if (type == "Whitespace") {
    TW_ASSIGN_OR_RETURN(Pattern pattern,
                        Pattern::Native(absl::StrCat("[", kRustWordCharacters, "]+|[^",
                                                     kRustWordCharacters, "\\p{White_Space}]+")));
    return std::make_unique<Split>(std::move(pattern), SplitBehavior::kRemoved, /*invert=*/true);
  }
  if (type == "WhitespaceSplit") {
    return std::make_unique<SplitAtCharacters>(unicode::IsWhitespace, SplitBehavior::kRemoved);
  }
  if (type == "Punctuation") {
    SplitBehavior behavior = SplitBehavior::kIsolated;
    if (json.Has("behavior")) {
      TW_ASSIGN_OR_RETURN(behavior, ReadSplitBehavior(json));
    }
    return std::make_unique<SplitAtCharacters>(unicode::IsPunctuation, behavior);
  }
  if (type == "CharDelimiterSplit") {
    TW_ASSIGN_OR_RETURN(const std::string delimiter, json.GetString("delimiter"));
    if (delimiter.empty()) return json.Expected("a delimiter of one character");
    return std::make_unique<Split>(Pattern::Literal(delimiter), SplitBehavior::kRemoved,
                                   /*invert=*/false);
  }
  return json.Unsupported(type,
                          "Sequence, ByteLevel, Split, Metaspace, Digits, Whitespace, "
                          "WhitespaceSplit, Punctuation, CharDelimiterSplit");
}

}  // namespace thinwire
