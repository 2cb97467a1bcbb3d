// A tokenizer.model, read by the SentencePiece library. The library's header defines an
// absl::string_view of its own; this wrapper keeps it away from Abseil's, so neither header nor
// source may include Abseil.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace thinwire {

// Immutable after Load.
class SentencePieceModel {
 public:
  SentencePieceModel();
  SentencePieceModel(const SentencePieceModel&) = delete;
  SentencePieceModel& operator=(const SentencePieceModel&) = delete;
  ~SentencePieceModel();

  // Parses the bytes of a model. Returns what is wrong; empty when nothing is.
  std::string Load(const std::string& bytes);

  // Appends the ids of a text, without bos and eos. Returns what went wrong; empty when nothing
  // did.
  std::string Encode(const char* text, size_t size, std::vector<int32_t>* ids) const;

  enum class Kind { kNormal, kControl, kUnknown, kByte };
  struct Piece {
    Kind kind;
    std::string text;  // for kUnknown, what it decodes to
    int byte = -1;     // for kByte
  };
  // Ids are [0, size).
  const std::vector<Piece>& pieces() const { return pieces_; }
  int32_t IdOf(const std::string& piece) const;  // -1 when there is none

  int32_t bos_id() const;  // -1 when the model has none
  int32_t eos_id() const;

  // Whether decoding drops the blank that the first piece begins with, and whether it goes on doing
  // so until there is some text.
  bool drops_first_blank() const { return drops_first_blank_; }
  bool drops_all_first_blanks() const { return drops_all_first_blanks_; }

 private:
  std::string Decode(const std::vector<int>& ids) const;

  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  std::vector<Piece> pieces_;
  bool drops_first_blank_ = false;
  bool drops_all_first_blanks_ = false;
};

}  // namespace thinwire
