// The tokenizer of a tokenizer.json.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_config.h"

namespace thinwire {

// NotFound when there is no file at `path`; otherwise errors as LoadTokenizer says.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadJsonTokenizer(const std::string& path,
                                                             const TokenizerConfig& config);

}  // namespace thinwire
