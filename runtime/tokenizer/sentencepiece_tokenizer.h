// The tokenizer of a tokenizer.model.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_config.h"

namespace thinwire {

// NotFound when there is no file at `path`; InvalidArgument when it is no SentencePiece model or
// the added tokens contradict it. Text between added tokens is encoded as a text of its own, with a
// blank in front if the model puts one there. Decoding is SentencePiece's; control pieces have
// their names as text when they are not skipped.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePieceTokenizer(
    const std::string& path, const TokenizerConfig& config);

}  // namespace thinwire
