// Offline generation: prompts in, texts out, in the order of the prompts.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/batch/prompt.h"
#include "runtime/engine/engine.h"
#include "runtime/tokenizer/tokenizer.h"

namespace thinwire {

struct TextResult {
  std::string id;
  absl::Status status;  // why this prompt has no answer; the others have theirs
  int64_t num_prompt_tokens = 0;
  std::vector<int32_t> token_ids;  // a stop token, or the tokens of a stop string, included
  std::string text;                // special tokens left out; cut before a stop string
  std::string finish_reason;       // "length", "stop", "error"
  double ttft_ms = 0.0;
};

// The next prompt, or why a line is none, or nothing at the end.
using PromptSource = std::function<std::optional<PromptFile::Line>()>;

// An error that a callback returns ends the batch: what still runs is cancelled.
struct TextBatchCallbacks {
  // Called once per prompt, in the order of the source.
  std::function<absl::Status(const TextResult&)> on_result;
  // Text of a prompt as it is generated; only sensible for a single prompt. May be null.
  std::function<absl::Status(const std::string& id, const std::string& piece)> on_text;
};

// Runs every prompt of `source` to its end. Prompts are read and tokenised as the engine takes
// them, so memory is bounded by what is in the engine and by results that wait for an earlier one.
// A prompt that cannot run is a result with a status. The returned error leaves prompts unanswered:
// a callback's, and the engine is whole and idle; or the engine's, which is final.
absl::Status RunTextBatch(Engine& engine, const Tokenizer& tokenizer, const PromptSource& source,
                          const TextBatchCallbacks& callbacks);

}  // namespace thinwire
