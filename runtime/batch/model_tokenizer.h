// The tokenizer of whatever a --model names.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {

// LoadTokenizer of a folder; of a synthetic model, numbers (number_tokenizer.h). Errors: theirs,
// and LoadModelConfig's.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadModelTokenizer(const std::string& model);

}  // namespace thinwire
