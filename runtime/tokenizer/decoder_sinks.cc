#include "runtime/tokenizer/decoder_sinks.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "runtime/tokenizer/byte_alphabet.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

// The value of "<0x0A>"; -1 for other tokens.
int ByteOfToken(absl::string_view token) {
  if (token.size() != 6 || !absl::StartsWith(token, "<0x") || token[5] != '>') return -1;
  int value = 0;
  for (const char digit : token.substr(3, 2)) {
    if (digit >= '0' && digit <= '9') {
      value = value * 16 + (digit - '0');
    } else if ((digit >= 'A' && digit <= 'F') || (digit >= 'a' && digit <= 'f')) {
      value = value * 16 + ((digit | 0x20) - 'a' + 10);
    } else {
      return -1;
    }
  }
  return value;
}

}  // namespace

void JoinSink::BeginToken() {
  if (in_token_) return;
  if (any_token_) next_->Append(" ");
  in_token_ = any_token_ = true;
}

void JoinSink::Append(absl::string_view fragment) {
  BeginToken();
  next_->Append(fragment);
}

void JoinSink::EndToken() {
  BeginToken();
  in_token_ = false;
  next_->EndToken();
}

void FuseSink::Finish() {
  next_->EndToken();
  next_->Finish();
}

void ByteLevelSink::TakeToken(std::string* token) {
  if (!AlphabetToBytes(*token, &bytes_)) bytes_ += *token;
  std::string text;
  unicode::TakeLossy(/*finish=*/false, &bytes_, &text);
  if (!text.empty()) next_->Append(text);
}

void ByteLevelSink::Finish() {
  std::string text;
  unicode::TakeLossy(/*finish=*/true, &bytes_, &text);
  PassToken(text);
  next_->Finish();
}

void ByteFallbackSink::TakeToken(std::string* token) {
  const int byte = ByteOfToken(*token);
  if (byte >= 0) {
    run_.push_back(static_cast<char>(byte));
    return;
  }
  EndRun();
  PassToken(*token);
}

void ByteFallbackSink::EndRun() {
  if (run_.empty()) return;
  if (unicode::FirstInvalidByte(run_) == run_.size()) {
    PassToken(run_);
  } else {
    for (size_t i = 0; i < run_.size(); ++i) PassToken(unicode::kReplacement);
  }
  run_.clear();
}

void ByteFallbackSink::Finish() {
  EndRun();
  next_->Finish();
}

void MetaspaceSink::Append(absl::string_view fragment) {
  next_->Append(absl::StrReplaceAll(fragment, {{replacement_, dropping_ ? "" : " "}}));
}

void MetaspaceSink::EndToken() {
  dropping_ = false;
  next_->EndToken();
}

void ReplaceLiteralSink::Append(absl::string_view fragment) {
  held_.append(fragment.data(), fragment.size());
  std::string text;
  size_t done = 0;
  for (size_t at = held_.find(pattern_); at != std::string::npos; at = held_.find(pattern_, done)) {
    text.append(held_, done, at - done);
    text += content_;
    done = at + pattern_.size();
  }
  // Keep the longest end that is a beginning of the pattern.
  size_t keep = std::min(pattern_.size() - 1, held_.size() - done);
  while (keep > 0 && held_.compare(held_.size() - keep, keep, pattern_, 0, keep) != 0) --keep;
  text.append(held_, done, held_.size() - keep - done);
  held_.erase(0, held_.size() - keep);
  if (!text.empty()) next_->Append(text);
}

void ReplaceLiteralSink::EndToken() {
  if (!held_.empty()) next_->Append(held_);
  held_.clear();
  next_->EndToken();
}

void ReplaceRegexSink::TakeToken(std::string* token) {
  std::string replaced = *token;
  if (pattern_->ReplaceAll(content_, &replaced).ok()) *token = std::move(replaced);
  PassToken(*token);
}

void StripSink::Append(absl::string_view fragment) {
  std::string text;
  for (size_t at = 0; at < fragment.size();) {
    const absl::string_view rest = fragment.substr(at);
    const absl::string_view character =
        rest.substr(0, std::max<size_t>(1, unicode::CharSize(rest)));
    at += character.size();
    const bool matches = character == content_;
    if (at_beginning_ && matches && dropped_ < start_) {
      ++dropped_;
      continue;
    }
    at_beginning_ = false;
    if (matches) {
      ++held_;
      if (held_ <= stop_) continue;
      held_ = stop_;
      text += content_;
      continue;
    }
    for (; held_ > 0; --held_) text += content_;
    text.append(character.data(), character.size());
  }
  if (!text.empty()) next_->Append(text);
}

void StripSink::EndToken() {
  dropped_ = held_ = 0;
  at_beginning_ = true;
  next_->EndToken();
}

}  // namespace thinwire
