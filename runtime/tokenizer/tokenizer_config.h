// The files beside tokenizer.json and tokenizer.model.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/added_vocabulary.h"
#include "runtime/tokenizer/json_reader.h"

namespace thinwire {

// What tokenizer_config.json, special_tokens_map.json and added_tokens.json say; defaults where
// they are missing. The first of them that speaks of a token counts.
struct TokenizerConfig {
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::string bos_token;  // empty: not named
  std::string eos_token;
  // added_tokens_decoder and added_tokens.json.
  std::vector<AddedToken> added_tokens;
  // Tokens with a role (bos, unk, ...), and additional_special_tokens.
  std::vector<std::string> special_tokens;
};

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& dir);

// Reads one entry of "added_tokens" without its id.
absl::StatusOr<AddedToken> ReadAddedToken(const JsonReader& json);

// InvalidArgument unless `text` can be encoded: well-formed UTF-8 of at most 2^30 bytes.
absl::Status CheckEncodable(absl::string_view text);

}  // namespace thinwire
