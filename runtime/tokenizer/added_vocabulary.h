// Tokens that are found in the text itself, ahead of the model: special tokens and additions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/regex.h"

namespace thinwire {

// One entry of "added_tokens".
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool single_word = false;  // matches only where no word character touches it
  bool lstrip = false;       // takes the whitespace to its left with it
  bool rstrip = false;       // and to its right
  bool normalized = false;   // looked for in the normalised text, in its own normalised form
};

// Finds the longest of a set of strings at each place, from left to right. Immutable after the last
// Add.
class StringMatcher {
 public:
  // The first of two equal strings counts; an empty one is never found.
  void Add(absl::string_view text, int32_t value);

  struct Match {
    ByteRange range;
    int32_t value = 0;
  };
  // The next match that begins at or after `from`; false when there is none. O(size * longest
  // string).
  bool Find(absl::string_view text, size_t from, Match* match) const;

 private:
  struct Node {
    absl::flat_hash_map<char, int32_t> next;
    int32_t value = -1;
  };
  std::vector<Node> nodes_{1};
};

// A set of added tokens with their matching rules (those of Hugging Face tokenizers 0.23).
class AddedVocabulary {
 public:
  AddedVocabulary() = default;

  // Later tokens with the content of an earlier one are ignored. `normalize` gives the normalised
  // form of tokens with `normalized`.
  static absl::StatusOr<AddedVocabulary> Create(
      std::vector<AddedToken> tokens, absl::FunctionRef<std::string(absl::string_view)> normalize);

  // A stretch of text (token < 0), or an added token found in it: an index into tokens().
  struct Piece {
    ByteRange range;
    int32_t token = -1;
  };
  // Cuts `text` at the tokens that are `normalized` or at those that are not. Text pieces are not
  // empty.
  absl::Status Split(absl::string_view text, bool normalized, std::vector<Piece>* pieces) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }

  // The token with the id, the first if there are several; null if there is none.
  const AddedToken* FindById(int32_t id) const;

  // -1 for what is no added token.
  int32_t IdOf(absl::string_view content) const;

  // One more than the largest id; 0 without tokens.
  int64_t end_id() const { return end_id_; }

 private:
  // Whether a word character stands right before or right after the match.
  absl::StatusOr<bool> TouchesWord(absl::string_view text, const ByteRange& match) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<int32_t, size_t> by_id_;            // indices into tokens_
  absl::flat_hash_map<std::string, int32_t> by_content_;  // ids
  int64_t end_id_ = 0;
  StringMatcher plain_;
  StringMatcher normalized_;
  std::optional<Regex> word_;  // one word character; set when a token is single_word
};

}  // namespace thinwire
