#include "tests/golden/golden_file.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

using nlohmann::json;

// The array of numbers in a field.
template <typename T>
absl::Status ReadNumbers(const JsonFields& fields, const char* key, std::vector<T>& out) {
  const json* values = fields.Get(key);
  if (values == nullptr || !values->is_array()) return fields.Expected(key, "an array");
  for (const json& value : *values) {
    if (!value.is_number()) return fields.Expected(key, "numbers");
    out.push_back(value.get<T>());
  }
  return absl::OkStatus();
}

absl::StatusOr<GoldenPrompt> ReadPrompt(const json& value, const std::string& context) {
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(value, context));
  GoldenPrompt prompt;
  TW_RETURN_IF_ERROR(ReadNumbers(fields, "ids", prompt.ids));
  TW_RETURN_IF_ERROR(ReadNumbers(fields, "greedy", prompt.greedy));
  TW_RETURN_IF_ERROR(ReadNumbers(fields, "gap", prompt.gaps));
  if (prompt.gaps.size() != prompt.greedy.size()) {
    return fields.Expected("gap", "as many numbers as \"greedy\" has");
  }
  return prompt;
}

}  // namespace

absl::StatusOr<Golden> ReadGolden(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/golden.json");
  TW_ASSIGN_OR_RETURN(const json value, ReadJsonFile(path));
  TW_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Create(value, path));
  Golden golden;
  const json* prompts = fields.Get("prompts");
  if (prompts == nullptr || !prompts->is_array() || prompts->empty()) {
    return fields.Expected("prompts", "an array");
  }
  for (const json& item : *prompts) {
    const std::string context = absl::StrCat(path, ": prompt ", golden.prompts.size());
    TW_ASSIGN_OR_RETURN(GoldenPrompt prompt, ReadPrompt(item, context));
    golden.prompts.push_back(std::move(prompt));
  }
  if (!fields.Has("nll")) return fields.Expected("nll", "an object");
  TW_ASSIGN_OR_RETURN(const JsonFields nll, fields.Object("nll"));
  TW_RETURN_IF_ERROR(ReadNumbers(nll, "ids", golden.nll_ids));
  TW_RETURN_IF_ERROR(ReadNumbers(nll, "per_window", golden.window_nll));
  TW_ASSIGN_OR_RETURN(golden.mean_nll, nll.PositiveDouble("mean_nll"));
  if (golden.window_nll.empty() || golden.nll_ids.size() % golden.window_nll.size() != 0) {
    return nll.Expected("per_window", "a number for each of several equal windows");
  }
  TW_ASSIGN_OR_RETURN(golden.logits, ReadNpyMatrix(absl::StrCat(model_dir, "/golden.logits.npy")));
  if (golden.logits.rows != static_cast<int64_t>(golden.prompts.size())) {
    return absl::InvalidArgumentError(absl::StrCat(model_dir,
                                                   "/golden.logits.npy: ", golden.logits.rows,
                                                   " rows; expected ", golden.prompts.size()));
  }
  return golden;
}

}  // namespace thinwire
