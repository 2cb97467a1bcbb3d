#include "runtime/server/chat_template.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/status_macros.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

using Json = nlohmann::json;

struct BuiltIn {
  const char* name;
  const char* mark;  // in a model's own template; null: none that it could be known by
  const char* json;
};

constexpr BuiltIn kBuiltIns[] = {
    {"llama-3", "<|start_header_id|>", R"({
      "begin": "<|begin_of_text|>",
      "system": ["<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"],
      "user": ["<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"],
      "assistant": ["<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"],
      "generate": "<|start_header_id|>assistant<|end_header_id|>\n\n",
      "stop": ["<|eot_id|>"]})"},
    {"chatml", "<|im_start|>", R"({
      "system": ["<|im_start|>system\n", "<|im_end|>\n"],
      "user": ["<|im_start|>user\n", "<|im_end|>\n"],
      "assistant": ["<|im_start|>assistant\n", "<|im_end|>\n"],
      "generate": "<|im_start|>assistant\n",
      "stop": ["<|im_end|>"]})"},
    {"llama-2", "<<SYS>>", R"({
      "begin": "<s>", "system": ["<<SYS>>\n", "\n<</SYS>>\n\n"], "system_in_user": true,
      "user": ["[INST] ", " [/INST]"], "assistant": [" ", " </s><s>"]})"},
    {"mistral", "[INST]", R"({
      "begin": "<s>", "system": ["", "\n\n"], "system_in_user": true,
      "user": ["[INST] ", " [/INST]"], "assistant": [" ", "</s>"]})"},
    {"plain", nullptr, R"({
      "system": ["", "\n\n"], "user": ["User: ", "\n"], "assistant": ["Assistant: ", "\n"],
      "generate": "Assistant:", "stop": ["\nUser:"]})"},
};

absl::Status Malformed(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("chat template ", name, ": ", what));
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(absl::string_view json, std::string name) {
  const Json object = Json::parse(json.begin(), json.end(), /*cb=*/nullptr,
                                  /*allow_exceptions=*/false);
  if (!object.is_object()) return Malformed(name, "not a JSON object");
  ChatTemplate result;
  result.name_ = std::move(name);
  for (const auto& [key, value] : object.items()) {
    if (key == "begin" || key == "generate") {
      if (!value.is_string()) return Malformed(result.name_, key + ": expected a string");
      (key == "begin" ? result.begin_ : result.generate_) = value.get<std::string>();
    } else if (key == "system_in_user") {
      if (!value.is_boolean()) return Malformed(result.name_, key + ": expected true or false");
      result.system_in_user_ = value.get<bool>();
    } else if (key == "stop") {
      if (!value.is_array()) return Malformed(result.name_, key + ": expected a list of strings");
      for (const Json& stop : value) {
        if (!stop.is_string() || stop.get_ref<const std::string&>().empty()) {
          return Malformed(result.name_, key + ": expected strings that are not empty");
        }
        result.stop_.push_back(stop.get<std::string>());
      }
    } else if (key == "system" || key == "user" || key == "assistant") {
      if (!value.is_array() || value.size() != 2 || !value[0].is_string() ||
          !value[1].is_string()) {
        return Malformed(result.name_, key + ": expected two strings, before and after");
      }
      result.roles_[key] = {value[0].get<std::string>(), value[1].get<std::string>()};
    } else {
      return Malformed(result.name_, "unknown member '" + key + "'");
    }
  }
  if (!result.roles_.contains("user")) return Malformed(result.name_, "no member 'user'");
  return result;
}

std::vector<std::string> ChatTemplate::BuiltInNames() {
  std::vector<std::string> names;
  for (const BuiltIn& built_in : kBuiltIns) names.push_back(built_in.name);
  return names;
}

absl::StatusOr<ChatTemplate> ChatTemplate::Load(absl::string_view name_or_path) {
  for (const BuiltIn& built_in : kBuiltIns) {
    if (name_or_path == built_in.name) return Parse(built_in.json, built_in.name);
  }
  const std::string path(name_or_path);
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::NotFoundError(absl::StrCat("chat template '", path,
                                            "': no such file; built in are ",
                                            absl::StrJoin(BuiltInNames(), ", ")));
  }
  TW_ASSIGN_OR_RETURN(const Json object, ReadJsonFile(path));
  return Parse(object.dump(), path);
}

absl::StatusOr<ChatTemplate::OwnTemplate> ChatTemplate::OfModel(const std::string& dir) {
  const std::string path = dir + "/tokenizer_config.json";
  std::error_code error;
  OwnTemplate own;
  if (!std::filesystem::is_regular_file(path, error)) return own;
  TW_ASSIGN_OR_RETURN(const Json object, ReadJsonFile(path));
  const auto it = object.is_object() ? object.find("chat_template") : object.end();
  if (it == object.end() || it->is_null()) return own;
  own.exists = true;
  if (!it->is_string()) return own;
  const std::string& program = it->get_ref<const std::string&>();
  for (const BuiltIn& built_in : kBuiltIns) {
    if (built_in.mark != nullptr && absl::StrContains(program, built_in.mark)) {
      TW_ASSIGN_OR_RETURN(own.known, Load(built_in.name));
      break;
    }
  }
  return own;
}

absl::StatusOr<std::vector<ChatTemplate::Piece>> ChatTemplate::Render(
    const std::vector<ChatMessage>& messages) const {
  if (messages.empty()) return absl::InvalidArgumentError("messages: expected at least one");
  std::vector<Piece> pieces;
  const auto add = [&pieces](const std::string& text, bool trusted) {
    if (text.empty()) return;
    if (!pieces.empty() && pieces.back().trusted == trusted) {
      pieces.back().text += text;
    } else {
      pieces.push_back({text, trusted});
    }
  };
  add(begin_, true);
  const ChatMessage* system = nullptr;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const auto role = roles_.find(message.role);
    if (role == roles_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "]: chat template ", name_,
                                                     " has no role '", message.role, "'"));
    }
    if (message.role == "system") {
      if (i != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("messages[", i, "]: a system message can only be the first"));
      }
      if (system_in_user_) {
        system = &message;
        continue;
      }
    }
    add(role->second.before, true);
    if (system != nullptr && message.role == "user") {
      const Around& around = roles_.at("system");
      add(around.before, true);
      add(system->content, false);
      add(around.after, true);
      system = nullptr;
    }
    add(message.content, false);
    add(role->second.after, true);
  }
  if (system != nullptr) {
    return absl::InvalidArgumentError("messages: a system message without a user's");
  }
  add(generate_, true);
  return pieces;
}

absl::StatusOr<std::vector<int32_t>> ChatTemplate::Encode(const std::vector<ChatMessage>& messages,
                                                          const Tokenizer& tokenizer) const {
  TW_ASSIGN_OR_RETURN(const std::vector<Piece> pieces, Render(messages));
  bool forged = false;
  std::string all;
  for (const Piece& piece : pieces) {
    all += piece.text;
    if (piece.trusted) continue;
    TW_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                        tokenizer.Encode(piece.text, /*add_special_tokens=*/false));
    for (const int32_t id : ids) forged = forged || tokenizer.IsSpecial(id);
  }
  // A message that spells a special token would speak with the template's voice.
  if (forged) return absl::InvalidArgumentError("messages: content spells a special token");
  const bool add_special = begin_.empty();
  return tokenizer.Encode(all, add_special);
}

}  // namespace thinwire
