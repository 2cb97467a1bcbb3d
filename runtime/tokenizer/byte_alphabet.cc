#include "runtime/tokenizer/byte_alphabet.h"

#include <array>

#include "runtime/tokenizer/unicode.h"

namespace thinwire {
namespace {

constexpr uint32_t kAlphabetEnd = 0x100 + 68;  // 68 bytes do not stand for themselves

constexpr bool StandsForItself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

constexpr std::array<uint16_t, 256> MakeCharacters() {
  std::array<uint16_t, 256> characters = {};
  uint16_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    characters[byte] = StandsForItself(byte) ? static_cast<uint16_t>(byte) : next++;
  }
  return characters;
}

constexpr std::array<int16_t, kAlphabetEnd> MakeBytes() {
  std::array<int16_t, kAlphabetEnd> bytes = {};
  for (int16_t& byte : bytes) byte = -1;
  const std::array<uint16_t, 256> characters = MakeCharacters();
  for (size_t byte = 0; byte < 256; ++byte) bytes[characters[byte]] = static_cast<int16_t>(byte);
  return bytes;
}

constexpr std::array<uint16_t, 256> kCharacters = MakeCharacters();
constexpr std::array<int16_t, kAlphabetEnd> kBytes = MakeBytes();

}  // namespace

void BytesToAlphabet(absl::string_view text, std::string* characters) {
  for (const char byte : text) {
    unicode::AppendChar(kCharacters[static_cast<uint8_t>(byte)], characters);
  }
}

bool AlphabetToBytes(absl::string_view characters, std::string* bytes) {
  const size_t size_before = bytes->size();
  for (size_t at = 0; at < characters.size();) {
    const size_t size = unicode::CharSize(characters.substr(at));
    const uint32_t c = size == 0 ? kAlphabetEnd : unicode::DecodeChar(characters.substr(at));
    if (c >= kAlphabetEnd || kBytes[c] < 0) {
      bytes->resize(size_before);
      return false;
    }
    bytes->push_back(static_cast<char>(kBytes[c]));
    at += size;
  }
  return true;
}

}  // namespace thinwire
