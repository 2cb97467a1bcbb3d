#include "runtime/server/served_model.h"

#include <filesystem>
#include <system_error>

#include "kernels/core/status_macros.h"
#include "runtime/batch/model_tokenizer.h"

namespace thinwire {
namespace {

absl::string_view TemplateOfFamily(const ModelConfig& config, const Tokenizer& tokenizer) {
  switch (config.family) {
    case ModelFamily::kOpt:
      return "plain";
    case ModelFamily::kLlama:
      return tokenizer.TokenToId("<|start_header_id|>") >= 0 ? "llama-3" : "llama-2";
    case ModelFamily::kMistral:
      return "mistral";
  }
  return "plain";
}

}  // namespace

absl::StatusOr<ServedModel> LoadServedModel(const std::string& dir, absl::string_view name,
                                            absl::string_view chat_template) {
  ServedModel model;
  TW_ASSIGN_OR_RETURN(model.config, LoadModelConfig(dir));
  TW_ASSIGN_OR_RETURN(model.tokenizer, LoadModelTokenizer(dir));
  model.name = std::string(name);
  if (name.empty()) {
    std::error_code error;
    const std::filesystem::path path = std::filesystem::canonical(dir, error);
    model.name = error ? dir : path.filename().string();
  }
  if (!chat_template.empty()) {
    TW_ASSIGN_OR_RETURN(model.chat_template, ChatTemplate::Load(chat_template));
  } else {
    TW_ASSIGN_OR_RETURN(const ChatTemplate::OwnTemplate own, ChatTemplate::OfModel(dir));
    model.chat_template = own.known;
    if (!own.exists) {
      TW_ASSIGN_OR_RETURN(model.chat_template,
                          ChatTemplate::Load(TemplateOfFamily(model.config, *model.tokenizer)));
    }
  }
  return model;
}

}  // namespace thinwire
