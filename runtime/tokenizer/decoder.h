// The "decoder" of tokenizer.json: turns tokens into text, as they come.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/tokenizer/json_reader.h"

namespace thinwire {

// Receives a sequence of tokens, each of them in fragments (whole characters). Single use.
class TokenSink {
 public:
  virtual ~TokenSink() = default;

  virtual void Append(absl::string_view fragment) = 0;  // of the current token
  virtual void EndToken() = 0;
  virtual void Finish() = 0;  // there are no more tokens
};

// One decoder, or a sequence of them. Immutable; outlives its sinks.
class Decoder {
 public:
  virtual ~Decoder() = default;

  // A sink that rewrites tokens and passes them on to `next`.
  virtual std::unique_ptr<TokenSink> NewSink(std::unique_ptr<TokenSink> next) const = 0;
};

// Reads one of: Sequence, ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip. A JSON null
// gives the decoder that puts a space between tokens. Unimplemented for others. Fragments that come
// out of a sequence are final; what a component cannot decide yet, it holds back:
//   ByteLevel: a truncated character.
//   ByteFallback: a run of byte tokens, which is U+FFFD throughout if one byte does not fit.
//   Strip, and Replace of a string: what may turn out to be stripped or replaced.
//   Replace of a regular expression: the current token, which after Fuse is the whole text. When
//     matching fails for want of memory, the token stays as it is.
absl::StatusOr<std::unique_ptr<Decoder>> ReadDecoder(const JsonReader& json);

}  // namespace thinwire
