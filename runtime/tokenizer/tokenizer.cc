#include "runtime/tokenizer/tokenizer.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kernels/core/status_macros.h"
#include "runtime/tokenizer/json_tokenizer.h"
#include "runtime/tokenizer/sentencepiece_tokenizer.h"
#include "runtime/tokenizer/tokenizer_config.h"

namespace thinwire {
namespace {

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& dir) {
  TW_ASSIGN_OR_RETURN(const TokenizerConfig config, ReadTokenizerConfig(dir));
  const std::string json_path = absl::StrCat(dir, "/tokenizer.json");
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadJsonTokenizer(json_path, config);
  if (!absl::IsNotFound(tokenizer.status())) return tokenizer;
  const std::string model_path = absl::StrCat(dir, "/tokenizer.model");
  tokenizer = LoadSentencePieceTokenizer(model_path, config);
  if (!absl::IsNotFound(tokenizer.status())) return tokenizer;
  return absl::NotFoundError(
      absl::StrCat("no tokenizer: neither ", json_path, " nor ", model_path, " exists"));
}

}  // namespace

std::string Tokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  const std::unique_ptr<Detokenizer> detokenizer = NewDetokenizer(skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) detokenizer->Push(id, &text);
  detokenizer->Finish(&text);
  return text;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& dir) {
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Load(dir);
  if (tokenizer.ok()) return tokenizer;
  // Messages quote tokens, and tokens may hold line breaks.
  return absl::Status(
      tokenizer.status().code(),
      absl::StrReplaceAll(tokenizer.status().message(), {{"\n", "\\n"}, {"\r", "\\r"}}));
}

}  // namespace thinwire
