#include "runtime/tokenizer/stream_decoder.h"

#include "kernels/core/check.h"

namespace thinwire {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : detokenizer_(tokenizer.NewDetokenizer(skip_special_tokens)) {}

std::string StreamDecoder::Push(int32_t id) {
  TW_CHECK(detokenizer_ != nullptr);
  std::string text;
  detokenizer_->Push(id, &text);
  return text;
}

std::string StreamDecoder::Flush() {
  TW_CHECK(detokenizer_ != nullptr);
  std::string text;
  detokenizer_->Finish(&text);
  detokenizer_.reset();
  return text;
}

}  // namespace thinwire
