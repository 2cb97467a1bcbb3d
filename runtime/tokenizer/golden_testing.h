// Comparing a tokenizer with recorded ids and texts; for tests of this folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/stream_decoder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_testing.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {

using Ids = std::vector<int32_t>;

inline nlohmann::json ReadJson(const std::string& path) {
  return nlohmann::json::parse(ReadFile(path));
}

// Checks the stream against `text`, and its pieces for being well-formed.
inline void ExpectStreamsAs(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens,
                            const std::string& text) {
  StreamDecoder decoder(tokenizer, skip_special_tokens);
  std::string streamed;
  const auto take = [&](const std::string& piece) {
    EXPECT_EQ(unicode::FirstInvalidByte(piece), piece.size()) << absl::CEscape(piece);
    streamed += piece;
  };
  for (const int32_t id : ids) take(decoder.Push(id));
  take(decoder.Flush());
  EXPECT_EQ(streamed, text);
}

inline void ExpectDecodes(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens,
                          const std::string& text) {
  EXPECT_EQ(tokenizer.Decode(ids, skip_special_tokens), text) << nlohmann::json(ids).dump();
  ExpectStreamsAs(tokenizer, ids, skip_special_tokens, text);
}

// Prompts and the sample text of a model's golden.json.
inline void ExpectEncodesAsRecorded(const Tokenizer& tokenizer, const nlohmann::json& golden) {
  for (const nlohmann::json& prompt : golden["prompts"]) {
    // The recorded text begins with the bos token, spelt out.
    const auto text = prompt["text"].get<std::string>();
    const auto ids = prompt["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.Encode(text, false).value(), ids) << text;
    const std::string plain = tokenizer.Decode(absl::MakeConstSpan(ids).subspan(1), false);
    EXPECT_EQ(tokenizer.Encode(plain, true).value(), ids) << text;
    ExpectDecodes(tokenizer, ids, false, text);
  }
  const nlohmann::json& sample = golden["tokenizer"];
  EXPECT_EQ(tokenizer.Encode(sample["text"].get<std::string>(), true).value(),
            sample["ids_with_special"].get<Ids>());
}

}  // namespace thinwire
