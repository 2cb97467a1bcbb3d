#include "runtime/batch/prompt.h"

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "runtime/json/json_member.h"

namespace thinwire {
namespace {

using Json = nlohmann::json;

absl::Status ReadStop(const Json& object, std::vector<std::string>& out) {
  const Json* value = FindMember(object, "stop");
  if (value == nullptr) return absl::OkStatus();
  const Json list = value->is_string() ? Json::array({*value}) : *value;
  if (!list.is_array()) return UnexpectedMember("stop", "a string or a list of strings", *value);
  out.clear();
  for (const Json& entry : list) {
    if (!entry.is_string() || entry.get_ref<const std::string&>().empty()) {
      return UnexpectedMember("stop", "strings that are not empty", entry);
    }
    out.push_back(entry.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const Json& list, std::vector<int32_t>& out) {
  if (!list.is_array()) return UnexpectedMember("token_ids", "a list of integers", list);
  for (const Json& entry : list) {
    constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
    if (!entry.is_number_integer() || entry.get<int64_t>() < 0 || entry.get<int64_t>() > kMax) {
      return UnexpectedMember("token_ids", "token ids", entry);
    }
    out.push_back(entry.get<int32_t>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Prompt> ParsePrompt(absl::string_view json, const GenerationParams& defaults,
                                   absl::string_view default_id, std::string* id_found) {
  if (id_found != nullptr) *id_found = std::string(default_id);
  TW_RETURN_IF_ERROR(CheckJsonDepth(json));
  const Json object = Json::parse(json.begin(), json.end(), /*cb=*/nullptr,
                                  /*allow_exceptions=*/false);
  if (object.is_discarded()) return absl::InvalidArgumentError("not valid JSON");
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a JSON object, found ", JsonExcerpt(object)));
  }
  Prompt prompt;
  prompt.params = defaults;
  prompt.id = std::string(default_id);
  if (const Json* id = FindMember(object, "id")) {
    if (!id->is_string() && !id->is_number_integer()) {
      return UnexpectedMember("id", "a string or an integer", *id);
    }
    prompt.id = id->is_string() ? id->get<std::string>() : id->dump();
    if (id_found != nullptr) *id_found = prompt.id;
  }
  const Json* text = FindMember(object, "prompt");
  const Json* token_ids = FindMember(object, "token_ids");
  if ((text == nullptr) == (token_ids == nullptr)) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected one of \"prompt\" and \"token_ids\", found ",
                     text == nullptr ? "neither" : "both"));
  }
  if (text != nullptr) {
    if (!text->is_string()) return UnexpectedMember("prompt", "a string", *text);
    prompt.text = text->get<std::string>();
  } else {
    TW_RETURN_IF_ERROR(ReadTokenIds(*token_ids, prompt.token_ids));
  }
  GenerationParams& params = prompt.params;
  int64_t top_k = params.sampling.top_k;
  auto seed = static_cast<int64_t>(params.sampling.seed);
  constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
  TW_RETURN_IF_ERROR(ReadMember(object, "max_tokens", 1, kMaxInt32, params.max_tokens));
  TW_RETURN_IF_ERROR(ReadMember(object, "top_k", 0, kMaxInt32, top_k));
  TW_RETURN_IF_ERROR(ReadMember(object, "seed", 0, std::numeric_limits<int64_t>::max(), seed));
  TW_RETURN_IF_ERROR(ReadMember(object, "temperature", params.sampling.temperature));
  TW_RETURN_IF_ERROR(ReadMember(object, "top_p", params.sampling.top_p));
  TW_RETURN_IF_ERROR(ReadStop(object, params.stop));
  params.sampling.top_k = static_cast<int32_t>(top_k);
  params.sampling.seed = static_cast<uint64_t>(seed);
  TW_RETURN_IF_ERROR(ValidateSamplingParams(params.sampling));
  return prompt;
}

absl::StatusOr<PromptFile> PromptFile::Open(const std::string& path,
                                            const GenerationParams& defaults) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": is a folder; expected a JSONL file"));
  }
  PromptFile file;
  file.path_ = path;
  file.defaults_ = defaults;
  errno = 0;
  file.file_.open(path);
  if (!file.file_.is_open()) return absl::ErrnoToStatus(errno == 0 ? EIO : errno, path);
  return file;
}

std::optional<PromptFile::Line> PromptFile::Next() {
  std::string text;
  while (std::getline(file_, text)) {
    ++line_number_;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::string id;
    absl::StatusOr<Prompt> prompt = ParsePrompt(text, defaults_, absl::StrCat(line_number_), &id);
    if (!prompt.ok()) {
      prompt = Annotate(prompt.status(), absl::StrCat(path_, ":", line_number_));
    }
    return Line{line_number_, std::move(id), std::move(prompt)};
  }
  return std::nullopt;
}

}  // namespace thinwire
