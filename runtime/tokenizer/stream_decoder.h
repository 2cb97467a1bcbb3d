// Turns generated ids into text while they are being generated.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {

// The pieces that Push and Flush return make up exactly Tokenizer::Decode of all ids. Each piece is
// well-formed UTF-8 and final. What a later id can still change is held back: an incomplete
// character, a run of byte tokens (as a whole it is text or U+FFFD), blanks that may be stripped.
// The cost of a Push depends on the token and on what is held back, not on what came before.
// Move-only; one stream per instance.
class StreamDecoder {
 public:
  // `tokenizer` is borrowed.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens);

  // Often empty. Ids without a token are ignored. Not after Flush.
  std::string Push(int32_t id);

  // The end of the ids: what was held back. Call it once.
  std::string Flush();

 private:
  std::unique_ptr<Detokenizer> detokenizer_;
};

}  // namespace thinwire
