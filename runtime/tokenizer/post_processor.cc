#include "runtime/tokenizer/post_processor.h"

#include <iterator>
#include <string>
#include <utility>

#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"

namespace thinwire {
namespace {

// The id of ["<s>", 0].
absl::StatusOr<int32_t> ReadTokenAndId(const JsonReader& json, absl::string_view key) {
  TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> pair, json.GetElements(key));
  if (pair.size() != 2) return json.Expected(absl::StrCat(key, ": [token, id]"));
  TW_ASSIGN_OR_RETURN(const int64_t id, pair[1].AsInt());
  return static_cast<int32_t>(id);
}

}  // namespace

absl::StatusOr<PostProcessor::Template> PostProcessor::ReadTemplate(const JsonReader& json) {
  Template result(1);
  TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> items, json.GetElements("single"));
  for (const JsonReader& item : items) {
    if (item.Has("Sequence")) {
      result.emplace_back();
      continue;
    }
    if (!item.Has("SpecialToken")) return item.Expected("SpecialToken or Sequence");
    TW_ASSIGN_OR_RETURN(const JsonReader special, item.Get("SpecialToken"));
    TW_ASSIGN_OR_RETURN(const std::string name, special.GetString("id"));
    TW_ASSIGN_OR_RETURN(const JsonReader tokens, json.Get("special_tokens"));
    TW_ASSIGN_OR_RETURN(const JsonReader token, tokens.Get(name));
    TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> ids, token.GetElements("ids"));
    for (const JsonReader& id : ids) {
      TW_ASSIGN_OR_RETURN(const int64_t value, id.AsInt());
      result.back().push_back(static_cast<int32_t>(value));
    }
  }
  return result;
}

absl::StatusOr<PostProcessor> PostProcessor::Read(const JsonReader& json) {
  PostProcessor processor;
  if (json.value().is_null()) return processor;
  TW_ASSIGN_OR_RETURN(const std::string type, json.GetString("type"));
  if (type == "Sequence") {
    TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> elements, json.GetElements("processors"));
    for (const JsonReader& element : elements) {
      TW_ASSIGN_OR_RETURN(PostProcessor step, Read(element));
      std::move(step.templates_.begin(), step.templates_.end(),
                std::back_inserter(processor.templates_));
    }
    return processor;
  }
  if (type == "TemplateProcessing") {
    TW_ASSIGN_OR_RETURN(processor.templates_.emplace_back(), ReadTemplate(json));
    return processor;
  }
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    TW_ASSIGN_OR_RETURN(const int32_t first, ReadTokenAndId(json, "cls"));
    TW_ASSIGN_OR_RETURN(const int32_t last, ReadTokenAndId(json, "sep"));
    processor.templates_.push_back({{first}, {last}});
    return processor;
  }
  if (type == "ByteLevel") return processor;  // it trims offsets only
  return json.Unsupported(
      type, "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, Sequence");
}

std::vector<int32_t> PostProcessor::AddSpecialTokens(std::vector<int32_t> ids) const {
  for (const Template& parts : templates_) {
    std::vector<int32_t> result = parts[0];
    for (size_t i = 1; i < parts.size(); ++i) {
      result.insert(result.end(), ids.begin(), ids.end());
      result.insert(result.end(), parts[i].begin(), parts[i].end());
    }
    ids = std::move(result);
  }
  return ids;
}

}  // namespace thinwire
