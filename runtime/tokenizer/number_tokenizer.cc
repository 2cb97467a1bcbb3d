#include "runtime/tokenizer/number_tokenizer.h"

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/json/json_file.h"

namespace thinwire {
namespace {

class NumberDetokenizer : public Detokenizer {
 public:
  explicit NumberDetokenizer(int64_t vocab_size) : vocab_size_(vocab_size) {}

  void Push(int32_t id, std::string* text) override {
    if (id >= 0 && id < vocab_size_) absl::StrAppend(text, id, " ");
  }
  void Finish(std::string*) override {}

 private:
  const int64_t vocab_size_;
};

class NumberTokenizer : public Tokenizer {
 public:
  explicit NumberTokenizer(int64_t vocab_size) : vocab_size_(vocab_size) {}

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool) const override {
    std::vector<int32_t> ids;
    for (const absl::string_view word :
         absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty())) {
      const int32_t id = TokenToId(word);
      if (id < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("the model has no vocabulary: expected token ids in [0, ", vocab_size_,
                         ") with spaces between them, found ", QuotedForMessage(word)));
      }
      ids.push_back(id);
    }
    return ids;
  }

  std::unique_ptr<Detokenizer> NewDetokenizer(bool) const override {
    return std::make_unique<NumberDetokenizer>(vocab_size_);
  }

  int64_t vocab_size() const override { return vocab_size_; }
  bool IsSpecial(int32_t) const override { return false; }
  int32_t TokenToId(absl::string_view token) const override {
    int32_t id = -1;
    return absl::SimpleAtoi(token, &id) && id >= 0 && id < vocab_size_ ? id : -1;
  }
  int32_t bos_id() const override { return -1; }
  int32_t eos_id() const override { return -1; }

 private:
  const int64_t vocab_size_;
};

}  // namespace

std::unique_ptr<Tokenizer> MakeNumberTokenizer(int64_t vocab_size) {
  return std::make_unique<NumberTokenizer>(vocab_size);
}

}  // namespace thinwire
