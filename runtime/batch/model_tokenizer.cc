#include "runtime/batch/model_tokenizer.h"

#include "kernels/core/status_macros.h"
#include "runtime/checkpoint/model_config.h"
#include "runtime/checkpoint/synthetic_model.h"
#include "runtime/tokenizer/number_tokenizer.h"

namespace thinwire {

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadModelTokenizer(const std::string& model) {
  if (!IsSyntheticModel(model)) return LoadTokenizer(model);
  TW_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model));
  return MakeNumberTokenizer(config.vocab);
}

}  // namespace thinwire
