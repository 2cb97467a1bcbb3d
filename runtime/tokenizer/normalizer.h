// The "normalizer" of tokenizer.json: rewrites text before it is cut up.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"

namespace thinwire {

// One normaliser, or a sequence of them. Immutable.
class Normalizer {
 public:
  virtual ~Normalizer() = default;

  // Text is well-formed UTF-8 before and after. `*at_start`, true when the text is the beginning of
  // what the user gave, becomes false when leading characters are dropped.
  virtual absl::Status Apply(std::string* text, bool* at_start) const = 0;
};

// Reads one of: Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip. A JSON null
// gives the normaliser that changes nothing. Unimplemented for others.
absl::StatusOr<std::unique_ptr<Normalizer>> ReadNormalizer(const JsonReader& json);

}  // namespace thinwire
