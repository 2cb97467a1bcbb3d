#include "runtime/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "kernels/core/check.h"

namespace thinwire::unicode {
namespace {

struct Lead {
  size_t size;             // of the character; 0 for bytes that start none
  uint8_t second_min = 0;  // bounds of the second byte; the others are 80..BF
  uint8_t second_max = 0;
};

Lead ClassifyLead(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

// How many bytes of `text` agree with being the start of one character (0: not even the first).
size_t MatchingBytes(absl::string_view text, const Lead& lead) {
  if (lead.size == 0) return 0;
  const size_t end = std::min(lead.size, text.size());
  for (size_t i = 1; i < end; ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xBF;
    if (byte < low || byte > high) return i;
  }
  return end;
}

}  // namespace

size_t CharSize(absl::string_view text) {
  const Lead lead = ClassifyLead(static_cast<uint8_t>(text[0]));
  return MatchingBytes(text, lead) == lead.size ? lead.size : 0;
}

bool IsTruncatedChar(absl::string_view text) {
  if (text.empty()) return false;
  const Lead lead = ClassifyLead(static_cast<uint8_t>(text[0]));
  return text.size() < lead.size && MatchingBytes(text, lead) == text.size();
}

size_t FirstInvalidByte(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t size = CharSize(text.substr(at));
    if (size == 0) return at;
    at += size;
  }
  return at;
}

uint32_t DecodeChar(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const auto tail = [&](size_t i) { return byte(i) & 0x3F; };
  if (byte(0) < 0x80) return byte(0);
  if (byte(0) < 0xE0) return (byte(0) & 0x1F) << 6 | tail(1);
  if (byte(0) < 0xF0) return (byte(0) & 0x0F) << 12 | tail(1) << 6 | tail(2);
  return (byte(0) & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3);
}

void AppendChar(uint32_t code_point, std::string* text) {
  const auto append = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) {
    append(code_point);
  } else if (code_point < 0x800) {
    append(0xC0 | code_point >> 6);
    append(0x80 | (code_point & 0x3F));
  } else if (code_point < 0x10000) {
    append(0xE0 | code_point >> 12);
    append(0x80 | (code_point >> 6 & 0x3F));
    append(0x80 | (code_point & 0x3F));
  } else {
    append(0xF0 | code_point >> 18);
    append(0x80 | (code_point >> 12 & 0x3F));
    append(0x80 | (code_point >> 6 & 0x3F));
    append(0x80 | (code_point & 0x3F));
  }
}

void TakeLossy(bool finish, std::string* bytes, std::string* text) {
  const absl::string_view from = *bytes;
  size_t at = 0;
  while (at < from.size()) {
    const absl::string_view rest = from.substr(at);
    const Lead lead = ClassifyLead(static_cast<uint8_t>(rest[0]));
    const size_t matching = MatchingBytes(rest, lead);
    if (lead.size > 0 && matching == lead.size) {
      text->append(rest.data(), matching);
    } else if (!finish && matching > 0 && matching == rest.size()) {
      break;
    } else {
      *text += kReplacement;
    }
    at += std::max<size_t>(matching, 1);
  }
  bytes->erase(0, at);
}

bool IsWhitespace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsNumeric(uint32_t code_point) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool IsPunctuation(uint32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

std::string Normalize(absl::string_view text, NormalForm form) {
  int options = UTF8PROC_STABLE;
  options |=
      form == NormalForm::kNfc || form == NormalForm::kNfkc ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                                             static_cast<utf8proc_option_t>(options));
  TW_CHECK_LE(0, size);  // well-formed text fails only for want of memory
  std::string result(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
  std::free(mapped);  // NOLINT: utf8proc allocates with malloc
  return result;
}

std::string Lowercase(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t size = CharSize(text.substr(at));
    TW_CHECK_NE(size, 0u);
    const uint32_t c = DecodeChar(text.substr(at));
    if (c == 0x130) {
      result += "i\xCC\x87";  // the only character whose lower case is two characters
    } else {
      AppendChar(static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))),
                 &result);
    }
    at += size;
  }
  return result;
}

}  // namespace thinwire::unicode
