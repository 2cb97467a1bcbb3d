#include "runtime/tokenizer/sentencepiece_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "kernels/core/mapped_file.h"
#include "kernels/core/status_macros.h"
#include "runtime/tokenizer/added_vocabulary.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

constexpr absl::string_view kBlank = "\xE2\x96\x81";  // U+2581

class SentencePieceTokenizer : public Tokenizer {
 public:
  absl::Status Load(const std::string& path, const TokenizerConfig& config);

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text,
                                              bool add_special_tokens) const override;
  std::unique_ptr<Detokenizer> NewDetokenizer(bool skip_special_tokens) const override;
  int64_t vocab_size() const override { return vocab_size_; }
  bool IsSpecial(int32_t id) const override;
  int32_t TokenToId(absl::string_view token) const override;
  int32_t bos_id() const override { return bos_id_; }
  int32_t eos_id() const override { return eos_id_; }

  const SentencePieceModel& model() const { return model_; }
  const AddedVocabulary& added() const { return added_; }

 private:
  absl::Status AddTokens(const std::string& path, const TokenizerConfig& config);

  SentencePieceModel model_;
  AddedVocabulary added_;
  int64_t vocab_size_ = 0;
  int32_t bos_id_ = -1;
  int32_t eos_id_ = -1;
  bool add_bos_ = true;
  bool add_eos_ = false;
};

// SentencePiece's decoding, piece by piece: the same text as SentencePieceProcessor::Decode.
class PieceDetokenizer : public Detokenizer {
 public:
  PieceDetokenizer(const SentencePieceTokenizer* tokenizer, bool skip_special_tokens)
      : tokenizer_(tokenizer),
        skip_special_tokens_(skip_special_tokens),
        drop_blank_(tokenizer->model().drops_first_blank()) {}

  void Push(int32_t id, std::string* text) override {
    if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) {
      TakeBytes(/*finish=*/true, text);  // bytes on both sides of it form no character
      return;
    }
    if (const AddedToken* token = tokenizer_->added().FindById(id)) {
      Emit(token->content, text);
      return;
    }
    const auto& pieces = tokenizer_->model().pieces();
    if (id < 0 || id >= static_cast<int64_t>(pieces.size())) return;
    const SentencePieceModel::Piece& piece = pieces[id];
    switch (piece.kind) {
      case SentencePieceModel::Kind::kByte:
        bytes_.push_back(static_cast<char>(piece.byte));
        TakeBytes(/*finish=*/false, text);
        return;
      case SentencePieceModel::Kind::kControl:
      case SentencePieceModel::Kind::kUnknown:
        Emit(piece.text, text);
        return;
      case SentencePieceModel::Kind::kNormal:
        EmitNormal(piece.text, text);
        return;
    }
  }

  void Finish(std::string* text) override { TakeBytes(/*finish=*/true, text); }

 private:
  void Emit(absl::string_view piece, std::string* text) {
    TakeBytes(/*finish=*/true, text);
    if (!piece.empty()) drop_blank_ = false;
    text->append(piece.data(), piece.size());
  }

  void EmitNormal(absl::string_view piece, std::string* text) {
    TakeBytes(/*finish=*/true, text);
    if (drop_blank_ && absl::ConsumePrefix(&piece, kBlank)) {
      drop_blank_ = tokenizer_->model().drops_all_first_blanks();
    }
    Emit(absl::StrReplaceAll(piece, {{kBlank, " "}}), text);
  }

  // Every byte that is part of no character becomes one U+FFFD.
  void TakeBytes(bool finish, std::string* text) {
    while (!bytes_.empty()) {
      const size_t size = unicode::CharSize(bytes_);
      if (size > 0) {
        text->append(bytes_, 0, size);
      } else if (!finish && unicode::IsTruncatedChar(bytes_)) {
        return;
      } else {
        *text += unicode::kReplacement;
      }
      drop_blank_ = false;
      bytes_.erase(0, std::max<size_t>(size, 1));
    }
  }

  const SentencePieceTokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool drop_blank_;    // of the next piece
  std::string bytes_;  // of byte pieces; less than a character
};

absl::Status SentencePieceTokenizer::Load(const std::string& path, const TokenizerConfig& config) {
  {
    TW_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
    const auto* begin = reinterpret_cast<const char*>(file.bytes().data());
    const std::string error = model_.Load(std::string(begin, begin + file.bytes().size()));
    if (!error.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": not a SentencePiece model: ", error));
    }
  }
  TW_RETURN_IF_ERROR(AddTokens(path, config));
  bos_id_ = model_.bos_id() >= 0 ? model_.bos_id() : TokenToId(config.bos_token);
  eos_id_ = model_.eos_id() >= 0 ? model_.eos_id() : TokenToId(config.eos_token);
  add_bos_ = config.add_bos_token.value_or(true) && bos_id_ >= 0;
  add_eos_ = config.add_eos_token.value_or(false) && eos_id_ >= 0;
  return absl::OkStatus();
}

absl::Status SentencePieceTokenizer::AddTokens(const std::string& path,
                                               const TokenizerConfig& config) {
  std::vector<AddedToken> tokens = config.added_tokens;
  for (const std::string& content : config.special_tokens) {
    AddedToken token;
    token.content = content;
    token.id = model_.IdOf(content);
    token.special = true;
    // A special token that neither the model nor the added tokens hold has no id: it cannot occur.
    if (token.id >= 0) tokens.push_back(std::move(token));
  }
  const auto num_pieces = static_cast<int32_t>(model_.pieces().size());
  for (AddedToken& token : tokens) {
    token.normalized = false;  // there is no normalised text outside of the library
    if (token.id >= num_pieces || model_.IdOf(token.content) == token.id) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": added token \"", token.content, "\" has id ", token.id,
                     ", which the model's vocabulary of ", num_pieces, " gives to another piece"));
  }
  TW_ASSIGN_OR_RETURN(added_,
                      AddedVocabulary::Create(std::move(tokens), [](absl::string_view content) {
                        return std::string(content);
                      }));
  vocab_size_ = std::max<int64_t>(num_pieces, added_.end_id());
  return absl::OkStatus();
}

bool SentencePieceTokenizer::IsSpecial(int32_t id) const {
  if (const AddedToken* token = added_.FindById(id)) return token->special;
  return id >= 0 && id < static_cast<int64_t>(model_.pieces().size()) &&
         model_.pieces()[id].kind == SentencePieceModel::Kind::kControl;
}

int32_t SentencePieceTokenizer::TokenToId(absl::string_view token) const {
  const int32_t id = added_.IdOf(token);
  return id >= 0 ? id : model_.IdOf(std::string(token));
}

absl::StatusOr<std::vector<int32_t>> SentencePieceTokenizer::Encode(absl::string_view text,
                                                                    bool add_special_tokens) const {
  TW_RETURN_IF_ERROR(CheckEncodable(text));
  std::vector<AddedVocabulary::Piece> pieces;
  TW_RETURN_IF_ERROR(added_.Split(text, /*normalized=*/false, &pieces));
  std::vector<int32_t> ids;
  if (add_special_tokens && add_bos_) ids.push_back(bos_id_);
  for (const AddedVocabulary::Piece& piece : pieces) {
    if (piece.token >= 0) {
      ids.push_back(added_.tokens()[piece.token].id);
      continue;
    }
    const auto [begin, end] = piece.range;
    const std::string error = model_.Encode(text.data() + begin, end - begin, &ids);
    if (!error.empty()) return absl::InternalError(absl::StrCat("SentencePiece: ", error));
  }
  if (add_special_tokens && add_eos_) ids.push_back(eos_id_);
  return ids;
}

std::unique_ptr<Detokenizer> SentencePieceTokenizer::NewDetokenizer(
    bool skip_special_tokens) const {
  return std::make_unique<PieceDetokenizer>(this, skip_special_tokens);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePieceTokenizer(
    const std::string& path, const TokenizerConfig& config) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>();
  TW_RETURN_IF_ERROR(tokenizer->Load(path, config));
  return tokenizer;
}

}  // namespace thinwire
