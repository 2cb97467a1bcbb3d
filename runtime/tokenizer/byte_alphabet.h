// The byte-level alphabet: one printable character for each of the 256 bytes.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace thinwire {

// Appends the characters of the bytes of `text` (GPT-2's table: printable Latin-1 bytes stand for
// themselves, the others for U+0100 and up, in order).
void BytesToAlphabet(absl::string_view text, std::string* characters);

// Appends the bytes that the characters stand for. False, with nothing appended, when one of them
// is not in the alphabet.
bool AlphabetToBytes(absl::string_view characters, std::string* bytes);

}  // namespace thinwire
