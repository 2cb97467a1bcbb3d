#include "runtime/tokenizer/sentencepiece_model.h"

#include <sentencepiece_processor.h>

#include <cstdlib>
#include <exception>
#include <string_view>

namespace thinwire {
namespace {

constexpr char kBlank[] = "\xE2\x96\x81";  // U+2581

}  // namespace

SentencePieceModel::SentencePieceModel() = default;
SentencePieceModel::~SentencePieceModel() = default;

std::string SentencePieceModel::Load(const std::string& bytes) {
  processor_ = std::make_unique<sentencepiece::SentencePieceProcessor>();
  try {
    const sentencepiece::util::Status status = processor_->LoadFromSerializedProto(bytes);
    if (!status.ok()) return status.ToString();
  } catch (const std::exception& error) {
    // Debian's library brings a Protobuf of its own, older than the one that gRPC needs, and finds
    // that one where a program has both.
    return std::string(error.what()) +
           " (a program built with gRPC cannot read this file: give the model a tokenizer.json, or "
           "build with THINWIRE_SERVER=OFF)";
  }
  int word = -1;
  int blank = -1;
  int blank_and_more = -1;
  for (int id = 0; id < processor_->GetPieceSize(); ++id) {
    Piece piece{Kind::kNormal, processor_->IdToPiece(id)};
    if (processor_->IsControl(id)) {
      piece.kind = Kind::kControl;
    } else if (processor_->IsUnknown(id)) {
      piece.kind = Kind::kUnknown;
      piece.text = Decode({id});
    } else if (processor_->IsByte(id)) {
      piece.kind = Kind::kByte;
      piece.byte = static_cast<int>(std::strtol(piece.text.c_str() + 3, nullptr, 16));  // "<0x0A>"
    } else if (piece.text == kBlank) {
      blank = id;
    } else if (piece.text.rfind(kBlank, 0) == 0) {
      blank_and_more = id;
    } else {
      word = id;
    }
    pieces_.push_back(std::move(piece));
  }
  // The library's interface does not tell these settings; its decoder does.
  const auto drops_blank = [&](const std::vector<int>& ids) {
    return Decode(ids).rfind(' ', 0) != 0;
  };
  if (blank >= 0 && word >= 0) {
    drops_first_blank_ = drops_blank({blank, word});
    drops_all_first_blanks_ = drops_blank({blank, blank, word});
  } else if (blank_and_more >= 0) {
    drops_first_blank_ = drops_blank({blank_and_more});
  }
  return "";
}

std::string SentencePieceModel::Encode(const char* text, size_t size,
                                       std::vector<int32_t>* ids) const {
  std::vector<int> found;
  const sentencepiece::util::Status status =
      processor_->Encode(std::string_view(text, size), &found);
  if (!status.ok()) return status.ToString();
  ids->insert(ids->end(), found.begin(), found.end());
  return "";
}

std::string SentencePieceModel::Decode(const std::vector<int>& ids) const {
  std::string text;
  return processor_->Decode(ids, &text).ok() ? text : std::string();
}

int32_t SentencePieceModel::IdOf(const std::string& piece) const {
  const int id = processor_->PieceToId(piece);
  // Absent pieces have the unknown piece's id.
  return id >= 0 && id < processor_->GetPieceSize() && processor_->IdToPiece(id) == piece ? id : -1;
}

int32_t SentencePieceModel::bos_id() const { return processor_->bos_id(); }
int32_t SentencePieceModel::eos_id() const { return processor_->eos_id(); }

}  // namespace thinwire
