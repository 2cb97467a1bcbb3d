#include "runtime/tokenizer/added_vocabulary.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

// The character that ends right before `end`.
absl::string_view CharBefore(absl::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return text.substr(begin, end - begin);
}

absl::string_view CharAt(absl::string_view text, size_t begin) {
  return text.substr(begin, unicode::CharSize(text.substr(begin)));
}

bool IsWhitespace(absl::string_view character) {
  return unicode::IsWhitespace(unicode::DecodeChar(character));
}

}  // namespace

void StringMatcher::Add(absl::string_view text, int32_t value) {
  if (text.empty()) return;
  size_t node = 0;
  for (const char byte : text) {
    const auto [next, inserted] =
        nodes_[node].next.try_emplace(byte, static_cast<int32_t>(nodes_.size()));
    node = static_cast<size_t>(next->second);
    if (inserted) nodes_.emplace_back();
  }
  if (nodes_[node].value < 0) nodes_[node].value = value;
}

bool StringMatcher::Find(absl::string_view text, size_t from, Match* match) const {
  if (nodes_.size() == 1) return false;
  for (size_t begin = from; begin < text.size(); ++begin) {
    const Node* node = &nodes_[0];
    match->value = -1;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto next = node->next.find(text[at]);
      if (next == node->next.end()) break;
      node = &nodes_[next->second];
      if (node->value >= 0) *match = {{begin, at + 1}, node->value};
    }
    if (match->value >= 0) return true;
  }
  return false;
}

absl::StatusOr<AddedVocabulary> AddedVocabulary::Create(
    std::vector<AddedToken> tokens, absl::FunctionRef<std::string(absl::string_view)> normalize) {
  AddedVocabulary vocabulary;
  for (AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    if (!vocabulary.by_content_.emplace(token.content, token.id).second) continue;
    vocabulary.by_id_.emplace(token.id, vocabulary.tokens_.size());
    vocabulary.end_id_ = std::max(vocabulary.end_id_, token.id + int64_t{1});
    if (token.single_word && !vocabulary.word_.has_value()) {
      TW_ASSIGN_OR_RETURN(vocabulary.word_,
                          Regex::CompileNative(absl::StrCat("[", kRustWordCharacters, "]")));
    }
    vocabulary.tokens_.push_back(std::move(token));
  }
  // Of two tokens with one normalised form the special one counts.
  for (const bool special : {true, false}) {
    for (size_t i = 0; i < vocabulary.tokens_.size(); ++i) {
      const AddedToken& token = vocabulary.tokens_[i];
      if (token.special != special) continue;
      if (token.normalized) {
        vocabulary.normalized_.Add(normalize(token.content), static_cast<int32_t>(i));
      } else {
        vocabulary.plain_.Add(token.content, static_cast<int32_t>(i));
      }
    }
  }
  return vocabulary;
}

const AddedToken* AddedVocabulary::FindById(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

int32_t AddedVocabulary::IdOf(absl::string_view content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? -1 : found->second;
}

absl::StatusOr<bool> AddedVocabulary::TouchesWord(absl::string_view text,
                                                  const ByteRange& match) const {
  std::vector<ByteRange> found;
  if (match.begin > 0) TW_RETURN_IF_ERROR(word_->FindAll(CharBefore(text, match.begin), &found));
  if (match.end < text.size()) {
    TW_RETURN_IF_ERROR(word_->FindAll(CharAt(text, match.end), &found));
  }
  return !found.empty();
}

absl::Status AddedVocabulary::Split(absl::string_view text, bool normalized,
                                    std::vector<Piece>* pieces) const {
  const StringMatcher& matcher = normalized ? normalized_ : plain_;
  size_t done = 0;  // the end of the last token, with the whitespace it took
  StringMatcher::Match match;
  for (size_t from = 0; matcher.Find(text, from, &match); from = match.range.end) {
    const AddedToken& token = tokens_[match.value];
    ByteRange range = match.range;
    if (token.single_word) {
      TW_ASSIGN_OR_RETURN(const bool touches, TouchesWord(text, range));
      if (touches) continue;
    }
    if (token.lstrip) {
      while (range.begin > done) {
        const absl::string_view before = CharBefore(text, range.begin);
        if (!IsWhitespace(before)) break;
        range.begin -= before.size();
      }
    }
    if (token.rstrip) {
      while (range.end < text.size() && IsWhitespace(CharAt(text, range.end))) {
        range.end += CharAt(text, range.end).size();
      }
    }
    if (done < range.begin) pieces->push_back({{done, range.begin}, -1});
    pieces->push_back({range, match.value});
    done = range.end;
  }
  if (done < text.size()) pieces->push_back({{done, text.size()}, -1});
  return absl::OkStatus();
}

}  // namespace thinwire
