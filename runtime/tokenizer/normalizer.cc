#include "runtime/tokenizer/normalizer.h"

#include <utility>
#include <vector>

#include "kernels/core/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/tokenizer/pattern.h"
#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}

  absl::Status Apply(std::string* text, bool* at_start) const override {
    for (const auto& step : steps_) TW_RETURN_IF_ERROR(step->Apply(text, at_start));
    return absl::OkStatus();
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}

  absl::Status Apply(std::string* text, bool*) const override {
    if (!text->empty()) text->insert(0, prefix_);
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  Replace(Pattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  absl::Status Apply(std::string* text, bool*) const override {
    return pattern_.ReplaceAll(content_, text);
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class UnicodeForm : public Normalizer {
 public:
  explicit UnicodeForm(unicode::NormalForm form) : form_(form) {}

  absl::Status Apply(std::string* text, bool*) const override {
    *text = unicode::Normalize(*text, form_);
    return absl::OkStatus();
  }

 private:
  unicode::NormalForm form_;
};

class Lowercase : public Normalizer {
 public:
  absl::Status Apply(std::string* text, bool*) const override {
    *text = unicode::Lowercase(*text);
    return absl::OkStatus();
  }
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}

  absl::Status Apply(std::string* text, bool* at_start) const override {
    absl::string_view rest = *text;
    size_t first = rest.size();  // of what is not whitespace
    size_t last = 0;
    for (size_t at = 0; at < rest.size();) {
      const size_t size = unicode::CharSize(rest.substr(at));
      if (!unicode::IsWhitespace(unicode::DecodeChar(rest.substr(at)))) {
        first = std::min(first, at);
        last = at + size;
      }
      at += size;
    }
    if (right_) text->resize(last);
    if (left_ && first > 0) {
      text->erase(0, first);
      *at_start = false;
    }
    return absl::OkStatus();
  }

 private:
  bool left_;
  bool right_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Normalizer>> ReadNormalizer(const JsonReader& json) {
  if (json.value().is_null()) {
    return std::make_unique<Sequence>(std::vector<std::unique_ptr<Normalizer>>());
  }
  TW_ASSIGN_OR_RETURN(const std::string type, json.GetString("type"));
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> steps;
    TW_ASSIGN_OR_RETURN(const std::vector<JsonReader> elements, json.GetElements("normalizers"));
    for (const JsonReader& element : elements) {
      TW_ASSIGN_OR_RETURN(steps.emplace_back(), ReadNormalizer(element));
    }
    return std::make_unique<Sequence>(std::move(steps));
  }
  if (type == "Prepend") {
    TW_ASSIGN_OR_RETURN(std::string prefix, json.GetString("prepend"));
    return std::make_unique<Prepend>(std::move(prefix));
  }
  if (type == "Replace") {
    TW_ASSIGN_OR_RETURN(Pattern pattern, Pattern::Read(json));
    TW_ASSIGN_OR_RETURN(std::string content, json.GetString("content"));
    return std::make_unique<Replace>(std::move(pattern), std::move(content));
  }
  if (type == "NFC") return std::make_unique<UnicodeForm>(unicode::NormalForm::kNfc);
  if (type == "NFD") return std::make_unique<UnicodeForm>(unicode::NormalForm::kNfd);
  if (type == "NFKC") return std::make_unique<UnicodeForm>(unicode::NormalForm::kNfkc);
  if (type == "NFKD") return std::make_unique<UnicodeForm>(unicode::NormalForm::kNfkd);
  if (type == "Lowercase") return std::make_unique<Lowercase>();
  if (type == "Strip") {
    TW_ASSIGN_OR_RETURN(const bool left, json.GetBoolOr("strip_left", true));
    TW_ASSIGN_OR_RETURN(const bool right, json.GetBoolOr("strip_right", true));
    return std::make_unique<Strip>(left, right);
  }
  return json.Unsupported(type,
                          "Sequence, Prepend, Replace, NFC, NFD, NFKC, NFKD, Lowercase, Strip");
}

}  // namespace thinwire
