// The "pre_tokenizer" of tokenizer.json: cuts text into the words that the model sees one by one.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"
#include "runtime/tokenizer/split.h"

namespace thinwire {

// One pre-tokenizer, or a sequence of them. Immutable.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;

  virtual absl::Status Apply(PieceList* list) const = 0;
};

// Reads one of: Sequence, ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit,
// Punctuation, CharDelimiterSplit. A JSON null gives the pre-tokenizer that changes nothing.
// Unimplemented for others.
absl::StatusOr<std::unique_ptr<PreTokenizer>> ReadPreTokenizer(const JsonReader& json);

}  // namespace thinwire
