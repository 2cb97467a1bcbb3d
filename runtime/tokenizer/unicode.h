// UTF-8 and the few Unicode properties that tokenizers ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace thinwire::unicode {

inline constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

// The size in bytes of the well-formed character (Unicode 15, table 3-7) that `text` starts with; 0
// when it starts with none. `text` is not empty.
size_t CharSize(absl::string_view text);

// True when `text` is a proper prefix of some well-formed character.
bool IsTruncatedChar(absl::string_view text);

// The offset of the first byte that is not part of a well-formed character; text.size() when there
// is none.
size_t FirstInvalidByte(absl::string_view text);

// The code point of the well-formed character that `text` starts with.
uint32_t DecodeChar(absl::string_view text);

// `code_point` is a scalar value: at most 0x10FFFF, not a surrogate.
void AppendChar(uint32_t code_point, std::string* text);

// Moves the well-formed characters at the front of `bytes` to the end of `text`. Each maximal
// ill-formed subpart (Unicode 15, section 3.9; what Rust and Python replace, too) becomes U+FFFD. A
// truncated character at the end stays in `bytes`, unless `finish`.
void TakeLossy(bool finish, std::string* bytes, std::string* text);

bool IsWhitespace(uint32_t code_point);   // the property White_Space
bool IsNumeric(uint32_t code_point);      // general categories Nd, Nl and No
bool IsPunctuation(uint32_t code_point);  // general categories P*, and all ASCII punctuation

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// `text` is well-formed UTF-8.
std::string Normalize(absl::string_view text, NormalForm form);

// Maps each character by itself to its full lower case (no context such as the Greek final sigma).
std::string Lowercase(absl::string_view text);

}  // namespace thinwire::unicode
