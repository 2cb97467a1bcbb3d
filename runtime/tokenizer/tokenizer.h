// Text to token ids and back, as Hugging Face tokenizers and SentencePiece do it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/tokenizer/detokenizer.h"

namespace thinwire {

// Immutable after loading, hence thread-safe.
//
// Decode(Encode(text)) is `text` for byte-level and byte-fallback vocabularies, but for what the
// tokenizer's own files ask for: normalisers, a space put in front, white space that tokens with
// lstrip or rstrip take, and special tokens that are skipped.
//
// Known differences from Hugging Face tokenizers 0.23: normal forms and classes of characters newer
// than Unicode 12.0 may differ (each library has its own tables; GPT-2's, LLaMA-3's and GPT-4o's
// expressions agree on all characters); an added token with "normalized" decodes to its content,
// not to its normalised form, and is skipped if it is special (as before version 0.23).
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // The ids of `text`; with `add_special_tokens`, those that the model's files put around it (bos,
  // eos), too. Added tokens ("</s>") that occur in the text become their ids, as they do in Hugging
  // Face tokenizers: whoever takes text from strangers checks the ids with IsSpecial. The empty
  // text has no ids of its own. InvalidArgument: not well-formed UTF-8 (the message has the byte's
  // offset), or longer than 2^30 bytes. "truncation" and "padding" of tokenizer.json do not apply.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                                      bool add_special_tokens) const = 0;

  // The text of `ids`, always well-formed UTF-8: bytes that form no character become U+FFFD. Ids
  // without a token, such as negative ones, have no text.
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  // Decode, id by id. The tokenizer outlives the result. StreamDecoder is the convenient form.
  virtual std::unique_ptr<Detokenizer> NewDetokenizer(bool skip_special_tokens) const = 0;

  // The largest id + 1, added tokens included.
  virtual int64_t vocab_size() const = 0;

  // Whether Decode leaves this id out when it skips special tokens. False for ids without a token.
  virtual bool IsSpecial(int32_t id) const = 0;

  // -1 when there is no such token. `token` is spelt as in the vocabulary, e.g. "Ġthe" or "▁the".
  virtual int32_t TokenToId(absl::string_view token) const = 0;

  // The ids of beginning and end of a text; -1 when the files name none.
  virtual int32_t bos_id() const = 0;
  virtual int32_t eos_id() const = 0;
};

// Opens `dir`/tokenizer.json (models of type BPE) or else `dir`/tokenizer.model (SentencePiece).
// Beside them, where they exist:
//   tokenizer_config.json: bos_token, eos_token; for tokenizer.model also add_bos_token (default
//     true), add_eos_token (default false) and added_tokens_decoder.
//   special_tokens_map.json: bos_token, eos_token; for tokenizer.model special tokens to be found
//     in text.
//   added_tokens.json: for tokenizer.model, further tokens to be found in text.
// NotFound names both files. Other errors name the file and what is wrong in it: InvalidArgument,
// or Unimplemented for components that are not supported (the message lists those that are).
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& dir);

}  // namespace thinwire
