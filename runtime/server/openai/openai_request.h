// Requests as OpenAI's HTTP API writes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/server/generation.h"
#include "runtime/server/served_model.h"

namespace thinwire {

struct OpenAiRequest {
  bool chat = false;
  bool stream = false;
  bool include_usage = false;  // of a stream: in an event of its own
  bool log_probs = false;
  int64_t num_prompts = 1;
  int64_t n = 1;  // choices for each prompt
  // One for each choice, those of one prompt together; ids are left open.
  std::vector<GenerationRequest> generations;
};

// The body of POST /v1/completions, or of /v1/chat/completions (`chat`). Beyond OpenAI's members:
// "top_k", "ignore_eos", "priority", "cache_salt", and a list of token ids as "prompt". Without
// "seed" a sampled answer is another each time; choice i goes by seed + i. Unknown members are
// ignored. InvalidArgument: malformed, and what OpenAI has but this server does not; NotFound:
// another model.
absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(absl::string_view body, bool chat,
                                                 const ServedModel& model);

}  // namespace thinwire
