// The states of the decoders of decoder.h. Private to this folder.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "runtime/tokenizer/decoder.h"
#include "runtime/tokenizer/pattern.h"

namespace thinwire {

// Passes everything on.
class ForwardingSink : public TokenSink {
 public:
  explicit ForwardingSink(std::unique_ptr<TokenSink> next) : next_(std::move(next)) {}

  void Append(absl::string_view fragment) override { next_->Append(fragment); }
  void EndToken() override { next_->EndToken(); }
  void Finish() override { next_->Finish(); }

 protected:
  void PassToken(absl::string_view token) {
    next_->Append(token);
    next_->EndToken();
  }

  std::unique_ptr<TokenSink> next_;
};

// Collects a token and hands it over whole.
class WholeTokenSink : public ForwardingSink {
 public:
  using ForwardingSink::ForwardingSink;

  void Append(absl::string_view fragment) final { token_.append(fragment.data(), fragment.size()); }
  void EndToken() final {
    TakeToken(&token_);
    token_.clear();
  }

 protected:
  // `token` may be changed.
  virtual void TakeToken(std::string* token) = 0;

 private:
  std::string token_;
};

// Puts a space between tokens.
class JoinSink : public ForwardingSink {
 public:
  using ForwardingSink::ForwardingSink;
  void Append(absl::string_view fragment) override;
  void EndToken() override;

 private:
  void BeginToken();

  bool in_token_ = false;
  bool any_token_ = false;
};

// Makes one token of all.
class FuseSink : public ForwardingSink {
 public:
  using ForwardingSink::ForwardingSink;
  void EndToken() override {}
  void Finish() override;
};

// Undoes the byte-level alphabet and makes one token of all. A token with a character outside of
// the alphabet is taken as it is.
class ByteLevelSink : public WholeTokenSink {
 public:
  using WholeTokenSink::WholeTokenSink;
  void Finish() override;

 protected:
  void TakeToken(std::string* token) override;

 private:
  std::string bytes_;
};

// Replaces each run of byte tokens ("<0x0A>") by the text of the bytes or, when they are not
// well-formed, by one U+FFFD for each.
class ByteFallbackSink : public WholeTokenSink {
 public:
  using WholeTokenSink::WholeTokenSink;
  void Finish() override;

 protected:
  void TakeToken(std::string* token) override;

 private:
  void EndRun();

  std::string run_;
};

// Replaces the character that stands for a space; in the first token, drops it if told to.
class MetaspaceSink : public ForwardingSink {
 public:
  MetaspaceSink(std::string replacement, bool drop_in_first, std::unique_ptr<TokenSink> next)
      : ForwardingSink(std::move(next)),
        replacement_(std::move(replacement)),
        dropping_(drop_in_first) {}
  void Append(absl::string_view fragment) override;
  void EndToken() override;

 private:
  std::string replacement_;
  bool dropping_;
};

class ReplaceLiteralSink : public ForwardingSink {
 public:
  ReplaceLiteralSink(std::string pattern, std::string content, std::unique_ptr<TokenSink> next)
      : ForwardingSink(std::move(next)),
        pattern_(std::move(pattern)),
        content_(std::move(content)) {}
  void Append(absl::string_view fragment) override;
  void EndToken() override;

 private:
  std::string pattern_;
  std::string content_;
  std::string held_;  // may be the beginning of the pattern
};

class ReplaceRegexSink : public WholeTokenSink {
 public:
  // `pattern` is borrowed.
  ReplaceRegexSink(const Pattern* pattern, std::string content, std::unique_ptr<TokenSink> next)
      : WholeTokenSink(std::move(next)), pattern_(pattern), content_(std::move(content)) {}

 protected:
  void TakeToken(std::string* token) override;

 private:
  const Pattern* pattern_;
  std::string content_;
};

// Drops up to `start` characters equal to `content` at the beginning of each token and up to `stop`
// at its end.
class StripSink : public ForwardingSink {
 public:
  StripSink(std::string content, int64_t start, int64_t stop, std::unique_ptr<TokenSink> next)
      : ForwardingSink(std::move(next)), content_(std::move(content)), start_(start), stop_(stop) {}
  void Append(absl::string_view fragment) override;
  void EndToken() override;

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
  int64_t dropped_ = 0;  // at the beginning
  bool at_beginning_ = true;
  int64_t held_ = 0;  // characters equal to `content` that may be the end of the token
};

}  // namespace thinwire
