#include "runtime/server/openai/openai_response.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace thinwire {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Event(const Json& json) { return absl::StrCat("data: ", Dump(json), "\n\n"); }

Json FinishReasonOf(const GenerationEnd& end) {
  switch (end.reason) {
    case EndReason::kStop:
    case EndReason::kStopString:
      return "stop";
    case EndReason::kLength:
      return "length";
    default:
      return nullptr;
  }
}

Json Usage(const OpenAiRequest& request, const std::vector<OpenAiChoice>& choices) {
  int64_t prompt = 0;
  int64_t completion = 0;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (static_cast<int64_t>(i) % request.n == 0) {
      prompt += static_cast<int64_t>(request.generations[i].prompt_ids.size());
    }
    completion += static_cast<int64_t>(choices[i].token_ids.size());
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion}};
}

// JSON has no infinity: a token that cannot be has OpenAI's number for it.
Json LogProb(float log_prob) { return std::max(log_prob, -9999.0f); }

// One token of a chat's "logprobs".
Json TokenEntry(const std::string& token, float log_prob) {
  return {{"token", token},
          {"logprob", LogProb(log_prob)},
          {"bytes", std::vector<uint8_t>(token.begin(), token.end())}};
}

Json LogProbs(const OpenAiChoice& choice, bool chat, const Tokenizer& tokenizer) {
  const auto text_of = [&](int32_t id) {
    return tokenizer.Decode({&id, 1}, /*skip_special_tokens=*/false);
  };
  const absl::Span<const TokenLogProb> all = choice.end.top_log_probs;
  const size_t count = choice.end.log_probs.size();
  const size_t num_top = count == 0 ? 0 : all.size() / count;
  Json content = Json::array();
  Json tokens = Json::array();
  Json log_probs = Json::array();
  Json tops = Json::array();
  Json offsets = Json::array();
  size_t offset = 0;
  for (size_t i = 0; i < count; ++i) {
    const std::string token = text_of(choice.token_ids[i]);
    const float log_prob = choice.end.log_probs[i];
    Json entries = Json::array();
    Json by_text = Json::object();
    for (const TokenLogProb& top : all.subspan(i * num_top, num_top)) {
      const std::string text = text_of(top.token_id);
      entries.push_back(TokenEntry(text, top.log_prob));
      // Of tokens with one text, the most probable.
      if (!by_text.contains(text)) by_text[text] = LogProb(top.log_prob);
    }
    if (num_top > 0 && !by_text.contains(token)) by_text[token] = LogProb(log_prob);
    content.push_back(TokenEntry(token, log_prob));
    content.back()["top_logprobs"] = std::move(entries);
    tokens.push_back(token);
    log_probs.push_back(LogProb(log_prob));
    tops.push_back(std::move(by_text));
    offsets.push_back(offset);
    offset += token.size();
  }
  if (chat) return {{"content", content}, {"refusal", nullptr}};
  return {{"tokens", tokens},
          {"token_logprobs", log_probs},
          {"top_logprobs", num_top > 0 ? tops : Json(nullptr)},
          {"text_offset", offsets}};
}

Json Head(const OpenAiAnswer& answer, const char* object) {
  return {
      {"id", answer.id}, {"object", object}, {"created", answer.created}, {"model", answer.model}};
}

Json ChunkHead(const OpenAiAnswer& answer) {
  return Head(answer, answer.chat ? "chat.completion.chunk" : "text_completion");
}

Json ErrorBody(int http_status, absl::string_view message, const Json& code) {
  const char* type = http_status == 429   ? "rate_limit_error"
                     : http_status == 401 ? "authentication_error"
                     : http_status == 403 ? "permission_error"
                     : http_status < 500  ? "invalid_request_error"
                                          : "server_error";
  return {
      {"error",
       {{"message", std::string(message)}, {"type", type}, {"param", nullptr}, {"code", code}}}};
}

Json ErrorBody(const absl::Status& status) {
  const int http_status = HttpStatusOf(status);
  const bool no_model = absl::IsNotFound(status) && absl::StartsWith(status.message(), "model ");
  return ErrorBody(http_status, status.message(),
                   no_model ? Json("model_not_found") : Json(http_status));
}

}  // namespace

std::string OpenAiResponseJson(const OpenAiAnswer& answer, const OpenAiRequest& request,
                               const std::vector<OpenAiChoice>& choices,
                               const Tokenizer& tokenizer) {
  Json body = Head(answer, answer.chat ? "chat.completion" : "text_completion");
  body["choices"] = Json::array();
  for (size_t i = 0; i < choices.size(); ++i) {
    const OpenAiChoice& choice = choices[i];
    Json entry = {{"index", i}};
    if (answer.chat) {
      entry["message"] = {{"role", "assistant"}, {"content", choice.text}};
    } else {
      entry["text"] = choice.text;
    }
    entry["logprobs"] =
        request.log_probs ? LogProbs(choice, answer.chat, tokenizer) : Json(nullptr);
    entry["finish_reason"] = FinishReasonOf(choice.end);
    entry["token_ids"] = choice.token_ids;
    body["choices"].push_back(std::move(entry));
  }
  body["usage"] = Usage(request, choices);
  return Dump(body);
}

std::string OpenAiChunk(const OpenAiAnswer& answer, const OpenAiRequest& request, int64_t index,
                        const OpenAiChoice& choice_so_far, const GenerationDelta& delta, bool first,
                        const Tokenizer& tokenizer) {
  Json body = ChunkHead(answer);
  Json choice = {{"index", index}};
  if (answer.chat) {
    Json message = Json::object();
    if (first) message["role"] = "assistant";
    if (first || !delta.text.empty()) message["content"] = delta.text;
    choice["delta"] = std::move(message);
  } else {
    choice["text"] = delta.text;
  }
  choice["logprobs"] = request.log_probs && delta.end.has_value()
                           ? LogProbs(choice_so_far, answer.chat, tokenizer)
                           : Json(nullptr);
  choice["finish_reason"] = delta.end.has_value() ? FinishReasonOf(*delta.end) : Json(nullptr);
  choice["token_ids"] = delta.token_ids;
  body["choices"] = Json::array({std::move(choice)});
  return Event(body);
}

std::string OpenAiUsageChunk(const OpenAiAnswer& answer, const OpenAiRequest& request,
                             const std::vector<OpenAiChoice>& choices) {
  Json body = ChunkHead(answer);
  body["choices"] = Json::array();
  body["usage"] = Usage(request, choices);
  return Event(body);
}

std::string OpenAiDone() { return "data: [DONE]\n\n"; }

std::string OpenAiErrorChunk(const absl::Status& status) { return Event(ErrorBody(status)); }

std::string OpenAiErrorJson(const absl::Status& status) { return Dump(ErrorBody(status)); }

std::string OpenAiErrorJson(int http_status, absl::string_view message) {
  return Dump(ErrorBody(http_status, message, http_status));
}

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
      return 400;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
      return 409;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kUnimplemented:
      return 501;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string OpenAiModelsJson(const ServedModel& model, int64_t created) {
  return Dump({{"object", "list"},
               {"data", Json::array({{{"id", model.name},
                                      {"object", "model"},
                                      {"created", created},
                                      {"owned_by", "thinwire"},
                                      {"max_model_len", model.config.max_positions}}})}});
}

}  // namespace thinwire
