// What a server knows of its model without an engine.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/server/chat_template.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {

// Immutable while it is served, hence thread-safe.
struct ServedModel {
  std::string name;  // as clients write it
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
};

// Reads config.json and the tokenizer of `dir`, and the chat template: `chat_template`, if that is
// not empty, is the name of a built-in one or a file; else the one that the model's files have, if
// this version knows it; else, where they have none, the family's. `name`: "" is the folder's.
absl::StatusOr<ServedModel> LoadServedModel(const std::string& dir, absl::string_view name,
                                            absl::string_view chat_template);

}  // namespace thinwire
