// Answers as OpenAI's HTTP API writes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/server/generation.h"
#include "runtime/server/openai/openai_request.h"

namespace thinwire {

// One choice, as far as it has come.
struct OpenAiChoice {
  std::string text;
  std::vector<int32_t> token_ids;
  GenerationEnd end;
};

// What the parts of one answer have in common.
struct OpenAiAnswer {
  std::string id;  // "cmpl-..." or "chatcmpl-..."
  std::string model;
  int64_t created = 0;  // seconds since 1970
  bool chat = false;
};

// The whole answer. Choices are those of the request, all ended well.
std::string OpenAiResponseJson(const OpenAiAnswer& answer, const OpenAiRequest& request,
                               const std::vector<OpenAiChoice>& choices,
                               const Tokenizer& tokenizer);

// One event of a stream, "data: ...\n\n": what came of a choice, which is in `choice_so_far`, too.
// `first`: of this choice. Log probabilities of all its tokens come with the last one.
std::string OpenAiChunk(const OpenAiAnswer& answer, const OpenAiRequest& request, int64_t index,
                        const OpenAiChoice& choice_so_far, const GenerationDelta& delta, bool first,
                        const Tokenizer& tokenizer);
// The event with the usage, and the one that ends a stream.
std::string OpenAiUsageChunk(const OpenAiAnswer& answer, const OpenAiRequest& request,
                             const std::vector<OpenAiChoice>& choices);
std::string OpenAiDone();
// An error inside a stream.
std::string OpenAiErrorChunk(const absl::Status& status);

// {"error": {"message", "type", "param", "code"}}.
std::string OpenAiErrorJson(const absl::Status& status);
// The same of an error that HTTP alone knows.
std::string OpenAiErrorJson(int http_status, absl::string_view message);

// The status code of HTTP: 400, 401, 403, 404, 409, 429, 499 (the client left), 500, 501, 503, 504.
int HttpStatusOf(const absl::Status& status);

// {"object": "list", "data": [{"id", "object", "created", "owned_by", "max_model_len"}]}.
std::string OpenAiModelsJson(const ServedModel& model, int64_t created);

}  // namespace thinwire
