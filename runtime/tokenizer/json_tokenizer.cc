#include "runtime/tokenizer/json_tokenizer.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/json/json_file.h"
#include "runtime/tokenizer/added_vocabulary.h"
#include "runtime/tokenizer/bpe_model.h"
#include "runtime/tokenizer/decoder.h"
#include "runtime/tokenizer/normalizer.h"
#include "runtime/tokenizer/post_processor.h"
#include "runtime/tokenizer/pre_tokenizer.h"

namespace thinwire {
namespace {

constexpr int64_t kMaxId = 1 << 24;

// The last sink of a decoder.
class StringSink : public TokenSink {
 public:
  void Append(absl::string_view fragment) override {
    text.append(fragment.data(), fragment.size());
  }
  void EndToken() override {}
  void Finish() override {}

  std::string text;
};

class JsonTokenizer : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Read(const JsonReader& json,
                                                         const TokenizerConfig& config);

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special_tokens) const override;
  std::unique_ptr<Detokenizer> NewDetokenizer(bool skip_special_tokens) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  bool IsSpecial(int32_t id) const override {
    const AddedToken* token = added_.FindById(id);
    return token != nullptr && token->special;
  }
  int32_t TokenToId(absl::string_view token) const override;
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }

  // Empty for ids without a token.
  absl::string_view TokenOf(int32_t id) const;

 private:
  explicit JsonTokenizer(BpeModel model) : model_(std::move(model)) {}

  absl::Status ReadAddedTokens(const JsonReader& json);

  // Encodes text that holds no added token of the kind that is looked for in raw text.
  absl::Status EncodeText(absl::string_view text, bool at_start, BpeModel::WordCache* cache,
                          std::vector<int32_t>* ids) const;

  BpeModel model_;
  std::unique_ptr<Normalizer> normalizer_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  std::unique_ptr<Decoder> decoder_;
  PostProcessor post_processor_;
  AddedVocabulary added_;
  int64_t vocab_size_ = 0;
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
};

class JsonDetokenizer : public Detokenizer {
 public:
  JsonDetokenizer(const JsonTokenizer* tokenizer, const Decoder& decoder, bool skip_special_tokens)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {
    auto output = std::make_unique<StringSink>();
    output_ = output.get();
    sink_ = decoder.NewSink(std::move(output));
  }

  void Push(int32_t id, std::string* text) override {
    const absl::string_view token = tokenizer_->TokenOf(id);
    if (token.empty() || (skip_special_tokens_ && tokenizer_->IsSpecial(id))) return;
    sink_->Append(token);
    sink_->EndToken();
    Take(text);
  }

  void Finish(std::string* text) override {
    sink_->Finish();
    Take(text);
  }

 private:
  void Take(std::string* text) {
    *text += output_->text;
    output_->text.clear();
  }

  const JsonTokenizer* tokenizer_;
  bool skip_special_tokens_;
  StringSink* output_;  // the end of the chain that sink_ owns
  std::unique_ptr<TokenSink> sink_;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> JsonTokenizer::Read(const JsonReader& json,
                                                               const TokenizerConfig& config) {
  const nlohmann::json null;
  const auto member = [&](absl::string_view key) -> absl::StatusOr<JsonReader> {
    if (!json.Has(key)) return JsonReader(&null, absl::StrCat(json.place(), key));
    return json.Get(key);
  };
  TW_ASSIGN_OR_RETURN(const JsonReader model_json, json.Get("model"));
  TW_ASSIGN_OR_RETURN(BpeModel model, BpeModel::Read(model_json));
  std::unique_ptr<JsonTokenizer> tokenizer(new JsonTokenizer(std::move(model)));
  TW_ASSIGN_OR_RETURN(const JsonReader normalizer, member("normalizer"));
  TW_ASSIGN_OR_RETURN(tokenizer->normalizer_, ReadNormalizer(normalizer));
  TW_ASSIGN_OR_RETURN(const JsonReader pre_tokenizer, member("pre_tokenizer"));
  TW_ASSIGN_OR_RETURN(tokenizer->pre_tokenizer_, ReadPreTokenizer(pre_tokenizer));
  TW_ASSIGN_OR_RETURN(const JsonReader post_processor, member("post_processor"));
  TW_ASSIGN_OR_RETURN(tokenizer->post_processor_, PostProcessor::Read(post_processor));
  TW_ASSIGN_OR_RETURN(const JsonReader decoder, member("decoder"));
  TW_ASSIGN_OR_RETURN(tokenizer->decoder_, ReadDecoder(decoder));
  TW_RETURN_IF_ERROR(tokenizer->ReadAddedTokens(json));
  tokenizer->bos_id_ = tokenizer->TokenToId(config.bos_token);
  tokenizer->eos_id_ = tokenizer->TokenToId(config.eos_token);
  return tokenizer;
}

absl::Status JsonTokenizer::ReadAddedTokens(const JsonReader& json) {
  std::vector<AddedToken> tokens;
  if (json.Has("added_tokens")) {
    TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> entries, json.GetElements("added_tokens"));
    for (const JsonReader& entry : entries) {
      TW_ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(entry));
      TW_ASSIGN_OR_RETURN(const int64_t id, entry.GetInt("id"));
      if (id < 0 || id >= kMaxId) {
        return entry.Expected(absl::StrCat("an id from 0 to ", kMaxId - 1));
      }
      const int32_t model_id = model_.IdOf(token.content);
      // The vocabulary has the last word on the id of a token that it holds.
      token.id = model_id >= 0 ? model_id : static_cast<int32_t>(id);
      if (model_id < 0 && id < model_.size() && !model_.TokenOf(token.id).empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(entry.place(), ": id ", id, " of \"", token.content, "\" belongs to \"",
                         model_.TokenOf(token.id), "\" in the vocabulary"));
      }
      tokens.push_back(std::move(token));
    }
  }
  absl::Status normalizer_status;
  TW_ASSIGN_OR_RETURN(added_,
                      AddedVocabulary::Create(std::move(tokens), [&](absl::string_view content) {
                        std::string text(content);
                        bool at_start = true;
                        normalizer_status.Update(normalizer_->Apply(&text, &at_start));
                        return text;
                      }));
  TW_RETURN_IF_ERROR(normalizer_status);
  for (const AddedToken& token : added_.tokens()) {
    if (added_.FindById(token.id) != &token) {
      return absl::InvalidArgumentError(
          absl::StrCat(json.place(), "added_tokens: two tokens have id ", token.id));
    }
  }
  vocab_size_ = std::max<int64_t>(model_.size(), added_.end_id());
  return absl::OkStatus();
}

absl::string_view JsonTokenizer::TokenOf(int32_t id) const {
  if (const AddedToken* token = added_.FindById(id)) return token->content;
  return id >= 0 && id < model_.size() ? model_.TokenOf(id) : absl::string_view();
}

int32_t JsonTokenizer::TokenToId(absl::string_view token) const {
  const int32_t id = added_.IdOf(token);
  return id >= 0 ? id : model_.IdOf(token);
}

absl::Status JsonTokenizer::EncodeText(absl::string_view text, bool at_start,
                                       BpeModel::WordCache* cache,
                                       std::vector<int32_t>* ids) const {
  std::string normalized(text);
  TW_RETURN_IF_ERROR(normalizer_->Apply(&normalized, &at_start));
  std::vector<AddedVocabulary::Piece> pieces;
  TW_RETURN_IF_ERROR(added_.Split(normalized, /*normalized=*/true, &pieces));
  for (const AddedVocabulary::Piece& piece : pieces) {
    if (piece.token >= 0) {
      ids->push_back(added_.tokens()[piece.token].id);
      continue;
    }
    const auto [begin, end] = piece.range;
    PieceList words;
    words.text = normalized.substr(begin, end - begin);
    words.pieces.push_back({{0, end - begin}, at_start && begin == 0});
    TW_RETURN_IF_ERROR(pre_tokenizer_->Apply(&words));
    for (const PieceList::Piece& word : words.pieces) model_.Encode(words.Text(word), cache, ids);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> JsonTokenizer::Encode(absl::string_view text,
                                                           bool add_special_tokens) const {
  TW_RETURN_IF_ERROR(CheckEncodable(text));
  std::vector<AddedVocabulary::Piece> pieces;
  TW_RETURN_IF_ERROR(added_.Split(text, /*normalized=*/false, &pieces));
  std::vector<int32_t> ids;
  BpeModel::WordCache cache;
  for (const AddedVocabulary::Piece& piece : pieces) {
    if (piece.token >= 0) {
      ids.push_back(added_.tokens()[piece.token].id);
      continue;
    }
    const auto [begin, end] = piece.range;
    TW_RETURN_IF_ERROR(EncodeText(text.substr(begin, end - begin), begin == 0, &cache, &ids));
  }
  return add_special_tokens ? post_processor_.AddSpecialTokens(std::move(ids)) : std::move(ids);
}

std::unique_ptr<Detokenizer> JsonTokenizer::NewDetokenizer(bool skip_special_tokens) const {
  return std::make_unique<JsonDetokenizer>(this, *decoder_, skip_special_tokens);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadJsonTokenizer(const std::string& path,
                                                             const TokenizerConfig& config) {
  TW_ASSIGN_OR_RETURN(const nlohmann::json json, ReadJsonFile(path));
  return JsonTokenizer::Read(JsonReader(&json, absl::StrCat(path, ": ")), config);
}

}  // namespace thinwire
