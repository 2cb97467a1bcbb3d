#include "runtime/tokenizer/tokenizer_config.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;  // positions of characters are 32-bit

constexpr const char* kRoles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};

// A token is given as a string or as an object with "content"; empty when missing.
absl::StatusOr<std::string> ReadRole(const JsonReader& json, absl::string_view role) {
  if (!json.Has(role)) return std::string();
  TW_ASSIGN_OR_RETURN(const JsonReader token, json.Get(role));
  if (token.value().is_object()) return token.GetString("content");
  return token.AsString();
}

absl::Status ReadRoles(const JsonReader& json, TokenizerConfig* config) {
  for (const char* role : kRoles) {
    TW_ASSIGN_OR_RETURN(const std::string token, ReadRole(json, role));
    if (!token.empty()) config->special_tokens.push_back(token);
  }
  TW_ASSIGN_OR_RETURN(const std::string bos, ReadRole(json, "bos_token"));
  TW_ASSIGN_OR_RETURN(const std::string eos, ReadRole(json, "eos_token"));
  if (config->bos_token.empty()) config->bos_token = bos;
  if (config->eos_token.empty()) config->eos_token = eos;
  if (!json.Has("additional_special_tokens")) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> others,
                      json.GetElements("additional_special_tokens"));
  for (const JsonReader& other : others) {
    TW_ASSIGN_OR_RETURN(std::string token,
                        other.value().is_object() ? other.GetString("content") : other.AsString());
    config->special_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status ReadMainConfig(const JsonReader& json, TokenizerConfig* config) {
  if (json.Has("add_bos_token")) {
    TW_ASSIGN_OR_RETURN(config->add_bos_token, json.GetBoolOr("add_bos_token", true));
  }
  if (json.Has("add_eos_token")) {
    TW_ASSIGN_OR_RETURN(config->add_eos_token, json.GetBoolOr("add_eos_token", false));
  }
  TW_RETURN_IF_ERROR(ReadRoles(json, config));
  if (!json.Has("added_tokens_decoder")) return absl::OkStatus();
  TW_ASSIGN_OR_RETURN(const JsonReader tokens, json.Get("added_tokens_decoder"));
  if (!tokens.value().is_object()) return tokens.Expected("an object");
  for (const auto& [id, value] : tokens.value().items()) {
    const JsonReader entry(&value, absl::StrCat(tokens.place(), ".", id));
    TW_ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(entry));
    if (!absl::SimpleAtoi(id, &token.id)) return entry.Expected("an integer as key");
    config->added_tokens.push_back(std::move(token));
  }
  // The keys of a JSON object come in the order of strings.
  std::sort(config->added_tokens.begin(), config->added_tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const JsonReader& json, TokenizerConfig* config) {
  if (!json.value().is_object()) return json.Expected("an object");
  for (const auto& [content, id] : json.value().items()) {
    AddedToken token;
    token.content = content;
    TW_ASSIGN_OR_RETURN(const int64_t value,
                        JsonReader(&id, absl::StrCat(json.place(), content)).AsInt());
    token.id = static_cast<int32_t>(value);
    token.special = std::find(config->special_tokens.begin(), config->special_tokens.end(),
                              content) != config->special_tokens.end();
    config->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::Status ReadIfThere(const std::string& path,
                         absl::Status (*read)(const JsonReader&, TokenizerConfig*),
                         TokenizerConfig* config) {
  const absl::StatusOr<nlohmann::json> json = ReadJsonFile(path);
  if (absl::IsNotFound(json.status())) return absl::OkStatus();
  if (!json.ok()) return json.status();
  return read(JsonReader(&*json, absl::StrCat(path, ": ")), config);
}

}  // namespace

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(const std::string& dir) {
  TokenizerConfig config;
  TW_RETURN_IF_ERROR(
      ReadIfThere(absl::StrCat(dir, "/tokenizer_config.json"), ReadMainConfig, &config));
  TW_RETURN_IF_ERROR(
      ReadIfThere(absl::StrCat(dir, "/special_tokens_map.json"), ReadRoles, &config));
  TW_RETURN_IF_ERROR(
      ReadIfThere(absl::StrCat(dir, "/added_tokens.json"), ReadAddedTokens, &config));
  return config;
}

absl::StatusOr<AddedToken> ReadAddedToken(const JsonReader& json) {
  AddedToken token;
  TW_ASSIGN_OR_RETURN(token.content, json.GetString("content"));
  TW_ASSIGN_OR_RETURN(token.special, json.GetBoolOr("special", false));
  TW_ASSIGN_OR_RETURN(token.single_word, json.GetBoolOr("single_word", false));
  TW_ASSIGN_OR_RETURN(token.lstrip, json.GetBoolOr("lstrip", false));
  TW_ASSIGN_OR_RETURN(token.rstrip, json.GetBoolOr("rstrip", false));
  TW_ASSIGN_OR_RETURN(token.normalized, json.GetBoolOr("normalized", !token.special));
  return token;
}

absl::Status CheckEncodable(absl::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("text has ", text.size(), " bytes; at most ", kMaxTextBytes, " are encoded"));
  }
  const size_t invalid = unicode::FirstInvalidByte(text);
  if (invalid < text.size()) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8: byte 0x",
                                                   absl::Hex(static_cast<uint8_t>(text[invalid])),
                                                   " at offset ", invalid));
  }
  return absl::OkStatus();
}

}  // namespace thinwire
