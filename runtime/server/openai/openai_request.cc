#include "runtime/server/openai/openai_request.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/json/json_member.h"

namespace thinwire {
namespace {

using Json = nlohmann::json;

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxChoices = 128;
constexpr size_t kMaxStops = 64;
constexpr size_t kMaxStopBytes = 4096;
constexpr size_t kMaxSaltBytes = 256;

// Members that would change the answer, were they heeded. Values that mean "no" are welcome.
absl::Status CheckUnsupported(const Json& object) {
  for (const char* name : {"suffix", "tools", "functions", "tool_choice", "function_call", "echo",
                           "logit_bias", "presence_penalty", "frequency_penalty", "audio", "min_p",
                           "repetition_penalty", "guided_json", "guided_regex"}) {
    const Json* value = FindMember(object, name);
    if (value == nullptr || *value == false || *value == 0 || *value == "" || *value == "none") {
      continue;
    }
    if (value->is_structured() && value->empty()) continue;
    if (absl::string_view(name) == "repetition_penalty" && *value == 1) continue;
    return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is not supported"));
  }
  const Json* format = FindMember(object, "response_format");
  if (format != nullptr && (!format->is_object() || format->value("type", Json()) != "text")) {
    return absl::InvalidArgumentError(
        "\"response_format\": only {\"type\": \"text\"} is supported");
  }
  const Json* best_of = FindMember(object, "best_of");
  const Json* n = FindMember(object, "n");
  if (best_of != nullptr && *best_of != (n == nullptr ? Json(1) : *n)) {
    return absl::InvalidArgumentError("\"best_of\" is not supported, unless it is \"n\"");
  }
  return absl::OkStatus();
}

// The value alone, or the entries of a list, if it is one.
std::vector<const Json*> ListOf(const Json& value, bool alone) {
  if (alone) return {&value};
  std::vector<const Json*> entries;
  if (!value.is_array()) return entries;
  entries.reserve(value.size());
  for (const Json& entry : value) entries.push_back(&entry);
  return entries;
}

absl::Status ReadStop(const Json& object, std::vector<std::string>& out) {
  const Json* value = FindMember(object, "stop");
  if (value == nullptr) return absl::OkStatus();
  const std::vector<const Json*> list = ListOf(*value, value->is_string());
  if (list.empty() && !value->is_array()) {
    return UnexpectedMember("stop", absl::StrCat("a string or up to ", kMaxStops, " strings"),
                            *value);
  }
  if (list.size() > kMaxStops) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"stop\": expected at most ", kMaxStops, " strings, found ", list.size()));
  }
  for (const Json* entry : list) {
    if (!entry->is_string() || entry->get_ref<const std::string&>().empty()) {
      return UnexpectedMember("stop", "strings that are not empty", *entry);
    }
    const auto& text = entry->get_ref<const std::string&>();
    // Every choice has a copy.
    if (text.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(absl::StrCat("\"stop\": expected at most ", kMaxStopBytes,
                                                     " bytes, found ", text.size()));
    }
    out.push_back(text);
  }
  return absl::OkStatus();
}

absl::Status ReadSalt(const Json& object, std::string& out) {
  const Json* value = FindMember(object, "cache_salt");
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string() || value->get_ref<const std::string&>().size() > kMaxSaltBytes) {
    return UnexpectedMember("cache_salt",
                            absl::StrCat("a string of up to ", kMaxSaltBytes, " bytes"), *value);
  }
  out = value->get<std::string>();
  return absl::OkStatus();
}

absl::Status CheckLength(size_t num_tokens, const ServedModel& model) {
  if (static_cast<int64_t>(num_tokens) < model.config.max_positions) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "prompt of ", num_tokens, " tokens is longer than the context: expected at most ",
      model.config.max_positions - 1));
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const Json& list) {
  std::vector<int32_t> ids;
  for (const Json& entry : list) {
    const bool fits =
        entry.is_number_integer() && entry.get<int64_t>() >= 0 && entry.get<int64_t>() <= kMaxInt32;
    if (!fits) return UnexpectedMember("prompt", "token ids", entry);
    ids.push_back(entry.get<int32_t>());
  }
  return ids;
}

// A string, a list of strings, a list of token ids, or a list of such lists. For `n` choices each:
// what is too much is refused before it is copied.
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadPrompts(const Json& object, int64_t n,
                                                              const ServedModel& model) {
  const Json* prompt = FindMember(object, "prompt");
  if (prompt == nullptr) return absl::InvalidArgumentError("\"prompt\" is missing");
  const bool one =
      prompt->is_string() || (prompt->is_array() && !prompt->empty() && prompt->at(0).is_number());
  const std::vector<const Json*> list = ListOf(*prompt, one);
  if (list.empty()) {
    return UnexpectedMember("prompt", "a string, strings, token ids, or lists of token ids",
                            *prompt);
  }
  if (static_cast<int64_t>(list.size()) > kMaxChoices / n) {
    return absl::InvalidArgumentError(absl::StrCat(list.size(), " prompts with \"n\" ", n,
                                                   ": at most ", kMaxChoices, " choices"));
  }
  std::vector<std::vector<int32_t>> prompts;
  for (const Json* entry : list) {
    if (entry->is_string()) {
      TW_ASSIGN_OR_RETURN(prompts.emplace_back(),
                          model.tokenizer->Encode(entry->get_ref<const std::string&>(),
                                                  /*add_special_tokens=*/true));
      TW_RETURN_IF_ERROR(CheckLength(prompts.back().size(), model));
    } else if (entry->is_array()) {
      TW_RETURN_IF_ERROR(CheckLength(entry->size(), model));
      TW_ASSIGN_OR_RETURN(prompts.emplace_back(), ReadIds(*entry));
    } else {
      return UnexpectedMember("prompt", "strings or lists of token ids", *entry);
    }
  }
  return prompts;
}

// The text of a message: a string, or a list of {"type": "text", "text": ...}.
absl::StatusOr<std::string> ReadContent(const Json& message) {
  const Json* content = FindMember(message, "content");
  if (content == nullptr) return std::string();
  if (content->is_string()) return content->get<std::string>();
  if (!content->is_array())
    return UnexpectedMember("content", "a string or a list of parts", *content);
  std::string text;
  for (const Json& part : *content) {
    if (!part.is_object() || part.value("type", Json()) != "text" ||
        !part.value("text", Json()).is_string()) {
      return UnexpectedMember("content", "parts of type \"text\"", part);
    }
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

absl::StatusOr<std::vector<int32_t>> ReadMessages(const Json& object, const ServedModel& model) {
  const Json* list = FindMember(object, "messages");
  if (list == nullptr) return absl::InvalidArgumentError("\"messages\" is missing");
  if (!list->is_array()) return UnexpectedMember("messages", "a list", *list);
  if (!model.chat_template.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model '", model.name,
                     "' has a chat template that this server does not know; start it with "
                     "--chat-template, or use /v1/completions"));
  }
  std::vector<ChatMessage> messages;
  for (const Json& entry : *list) {
    if (!entry.is_object()) return UnexpectedMember("messages", "objects", entry);
    const Json* role = FindMember(entry, "role");
    if (role == nullptr || !role->is_string()) {
      return UnexpectedMember("role", "a string", role == nullptr ? Json() : *role);
    }
    ChatMessage message;
    message.role = role->get<std::string>();
    if (message.role == "developer") message.role = "system";
    TW_ASSIGN_OR_RETURN(message.content, ReadContent(entry));
    messages.push_back(std::move(message));
  }
  return model.chat_template->Encode(messages, *model.tokenizer);
}

absl::Status ReadLogProbs(const Json& object, OpenAiRequest& request, int64_t& top) {
  if (request.chat) {
    TW_RETURN_IF_ERROR(ReadMember(object, "logprobs", request.log_probs));
    TW_RETURN_IF_ERROR(ReadMember(object, "top_logprobs", 0, kMaxTopLogProbs, top));
    if (top > 0 && !request.log_probs) {
      return absl::InvalidArgumentError("\"top_logprobs\": expected \"logprobs\" to be true");
    }
  } else if (FindMember(object, "logprobs") != nullptr) {
    TW_RETURN_IF_ERROR(ReadMember(object, "logprobs", 0, kMaxTopLogProbs, top));
    request.log_probs = true;
  }
  return absl::OkStatus();
}

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 31 | device()) & std::numeric_limits<int64_t>::max();
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseOpenAiRequest(absl::string_view body, bool chat,
                                                 const ServedModel& model) {
  TW_RETURN_IF_ERROR(CheckJsonDepth(body));
  const Json object = Json::parse(body.begin(), body.end(), /*cb=*/nullptr,
                                  /*allow_exceptions=*/false);
  if (object.is_discarded()) return absl::InvalidArgumentError("the body is not valid JSON");
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the body: expected a JSON object, found ", JsonExcerpt(object)));
  }
  if (const Json* name = FindMember(object, "model")) {
    if (!name->is_string()) return UnexpectedMember("model", "a string", *name);
    if (*name != model.name) {
      return absl::NotFoundError(absl::StrCat("model '", name->get_ref<const std::string&>(),
                                              "' is not here; this server has '", model.name, "'"));
    }
  }
  TW_RETURN_IF_ERROR(CheckUnsupported(object));
  OpenAiRequest request;
  request.chat = chat;
  GenerationRequest base;
  base.params.max_tokens = chat ? kMaxInt32 : 16;  // cut to what fits into the context
  base.params.sampling.temperature = 1.0f;
  int64_t top_k = 0;
  int64_t seed = -1;
  int64_t priority = 0;
  TW_RETURN_IF_ERROR(ReadMember(object, "stream", request.stream));
  TW_RETURN_IF_ERROR(ReadMember(object, "max_tokens", 1, kMaxInt32, base.params.max_tokens));
  if (chat) {
    TW_RETURN_IF_ERROR(
        ReadMember(object, "max_completion_tokens", 1, kMaxInt32, base.params.max_tokens));
  }
  TW_RETURN_IF_ERROR(ReadMember(object, "n", 1, kMaxChoices, request.n));
  TW_RETURN_IF_ERROR(ReadMember(object, "temperature", base.params.sampling.temperature));
  TW_RETURN_IF_ERROR(ReadMember(object, "top_p", base.params.sampling.top_p));
  TW_RETURN_IF_ERROR(ReadMember(object, "top_k", -1, kMaxInt32, top_k));
  TW_RETURN_IF_ERROR(ReadMember(object, "seed", 0, std::numeric_limits<int64_t>::max(), seed));
  TW_RETURN_IF_ERROR(ReadMember(object, "priority", -100, 100, priority));
  TW_RETURN_IF_ERROR(ReadMember(object, "ignore_eos", base.params.ignore_eos));
  TW_RETURN_IF_ERROR(ReadSalt(object, base.share_salt));
  TW_RETURN_IF_ERROR(ReadStop(object, base.params.stop));
  TW_RETURN_IF_ERROR(ReadLogProbs(object, request, base.num_top_log_probs));
  if (const Json* options = FindMember(object, "stream_options")) {
    if (!options->is_object()) return UnexpectedMember("stream_options", "an object", *options);
    TW_RETURN_IF_ERROR(ReadMember(*options, "include_usage", request.include_usage));
  }
  base.params.sampling.top_k = static_cast<int32_t>(std::max<int64_t>(top_k, 0));
  base.params.sampling.seed = seed >= 0 ? static_cast<uint64_t>(seed) : RandomSeed();
  base.priority = static_cast<int>(priority);
  base.want_log_probs = request.log_probs;
  TW_RETURN_IF_ERROR(ValidateSamplingParams(base.params.sampling));

  std::vector<std::vector<int32_t>> prompts;
  if (chat) {
    TW_ASSIGN_OR_RETURN(prompts.emplace_back(), ReadMessages(object, model));
    TW_RETURN_IF_ERROR(CheckLength(prompts.back().size(), model));
    const std::vector<std::string>& stop = model.chat_template->stop();
    base.params.stop.insert(base.params.stop.end(), stop.begin(), stop.end());
  } else {
    TW_ASSIGN_OR_RETURN(prompts, ReadPrompts(object, request.n, model));
  }
  request.num_prompts = static_cast<int64_t>(prompts.size());
  for (const std::vector<int32_t>& prompt : prompts) {
    for (int64_t i = 0; i < request.n; ++i) {
      GenerationRequest generation = base;
      generation.prompt_ids = prompt;
      generation.params.sampling.seed += static_cast<uint64_t>(i);
      request.generations.push_back(std::move(generation));
    }
  }
  return request;
}

}  // namespace thinwire
