#include "runtime/tokenizer/decoder.h"

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/decoder_sinks.h"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

class Sequence : public Decoder {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Decoder>> steps) : steps_(std::move(steps)) {}

  std::unique_ptr<TokenSink> NewSink(std::unique_ptr<TokenSink> next) const override {
    for (size_t i = steps_.size(); i-- > 0;) next = steps_[i]->NewSink(std::move(next));
    return next;
  }

 private:
  std::vector<std::unique_ptr<Decoder>> steps_;
};

// A decoder without settings.
template <typename Sink>
class Plain : public Decoder {
 public:
  std::unique_ptr<TokenSink> NewSink(std::unique_ptr<TokenSink> next) const override {
    return std::make_unique<Sink>(std::move(next));
  }
};

class Metaspace : public Decoder {
 public:
  Metaspace(std::string replacement, bool drop_in_first)
      : replacement_(std::move(replacement)), drop_in_first_(drop_in_first) {}

  std::unique_ptr<TokenSink> NewSink(std::unique_ptr<TokenSink> next) const override {
    return std::make_unique<MetaspaceSink>(replacement_, drop_in_first_, std::move(next));
  }

 private:
  std::string replacement_;
  bool drop_in_first_;
};

class Replace : public Decoder {
 public:
  Replace(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  std::unique_ptr<TokenSink> NewSink(std::unique_ptr<TokenSink> next) const override {
    if (pattern_.literal().empty()) {
      return std::make_unique<ReplaceRegexSink>(&pattern_, content_, std::move(next));
    }
    return std::make_unique<ReplaceLiteralSink>(pattern_.literal(), content_, std::move(next));
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class Strip : public Decoder {
 public:
  Strip(std::string content, int64_t start, int64_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}

  std::unique_ptr<TokenSink> NewSink(std::unique_ptr<TokenSink> next) const override {
    return std::make_unique<StripSink>(content_, start_, stop_, std::move(next));
  }

 private:
  std::string content_;
  int64_t start_;
  int64_t stop_;
};

// A member that holds exactly one character.
absl::StatusOr<std::string> ReadCharacter(const JsonReader& json, absl::string_view key) {
  TW_ASSIGN_OR_RETURN(std::string character, json.GetString(key));
  if (character.empty() || unicode::CharSize(character) != character.size()) {
    return json.Expected(absl::StrCat(key, " of one character"));
  }
  return character;
}

absl::StatusOr<std::unique_ptr<Decoder>> ReadMetaspace(const JsonReader& json) {
  TW_ASSIGN_OR_RETURN(std::string replacement, ReadCharacter(json, "replacement"));
  TW_ASSIGN_OR_RETURN(const bool add_prefix_space, json.GetBoolOr("add_prefix_space", true));
  TW_ASSIGN_OR_RETURN(const std::string scheme,
                      json.GetStringOr("prepend_scheme", add_prefix_space ? "always" : "never"));
  return std::make_unique<Metaspace>(std::move(replacement), scheme != "never");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> ReadDecoder(const JsonReader& json) {
  if (json.value().is_null()) return std::make_unique<Plain<JoinSink>>();
  TW_ASSIGN_OR_RETURN(const std::string type, json.GetString("type"));
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Decoder>> steps;
    TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> elements, json.GetElements("decoders"));
    for (const JsonReader& element : elements) {
      TW_ASSIGN_OR_RETURN(steps.emplace_back(), ReadDecoder(element));
    }
    return std::make_unique<Sequence>(std::move(steps));
  }
  if (type == "ByteLevel") return std::make_unique<Plain<ByteLevelSink>>();
  if (type == "ByteFallback") return std::make_unique<Plain<ByteFallbackSink>>();
  if (type == "Fuse") return std::make_unique<Plain<FuseSink>>();
  if (type == "Metaspace") return ReadMetaspace(json);
  if (type == "Replace") {
    TW_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Read(json));
    TW_ASSIGN_OR_RETURN(std::string content, json.GetString("content"));
    return std::make_unique<Replace>(std::move(pattern), std::move(content));
  }
  if (type == "Strip") {
    TW_ASSIGN_OR_RETURN(std::string content, ReadCharacter(json, "content"));
    TW_ASSIGN_OR_RETURN(const int64_t start, json.GetInt("start"));
    TW_ASSIGN_OR_RETURN(const int64_t stop, json.GetInt("stop"));
    return std::make_unique<Strip>(std::move(content), start, stop);
  }
  return json.Unsupported(type,
                          "Sequence, ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip");
}

}  // namespace thinwire
