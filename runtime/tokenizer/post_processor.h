// The "post_processor" of tokenizer.json, as far as it concerns ids: puts special tokens around a
// text's ids.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/json_reader.h"

namespace thinwire {

// Immutable.
class PostProcessor {
 public:
  // Reads one of: TemplateProcessing (the member "single"), BertProcessing, RobertaProcessing,
  // ByteLevel, Sequence. A JSON null gives the processor that adds nothing. Unimplemented for
  // others.
  static absl::StatusOr<PostProcessor> Read(const JsonReader& json);

  std::vector<int32_t> AddSpecialTokens(std::vector<int32_t> ids) const;

 private:
  // What stands before, between and after the places of the text's ids: one list more than places.
  using Template = std::vector<std::vector<int32_t>>;

  static absl::StatusOr<Template> ReadTemplate(const JsonReader& json);

  std::vector<Template> templates_;  // applied one after the other
};

}  // namespace thinwire
