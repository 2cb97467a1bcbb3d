// Fields of a string of bits, least significant first.
#pragma once

#include <cstdint>
#include <cstring>

namespace thinwire {

// Bytes that may be read behind a string.
inline constexpr int64_t kVptqCodeSlack = 8;

// What begins at bit `bit`: at least 57 bits.
inline uint64_t VptqCodeAt(const uint8_t* bytes, int64_t bit) {
  uint64_t word;
  std::memcpy(&word, bytes + bit / 8, sizeof(word));
  return word >> (bit % 8);
}

inline int64_t VptqField(uint64_t code, int first, int bits) {
  return static_cast<int64_t>((code >> first) & ((uint64_t{1} << bits) - 1));
}

// Sets `bits` <= 32 bits, which must be 0 before.
inline void SetVptqCode(uint8_t* bytes, int64_t bit, uint64_t code) {
  uint64_t word;
  std::memcpy(&word, bytes + bit / 8, sizeof(word));
  word |= code << (bit % 8);
  std::memcpy(bytes + bit / 8, &word, sizeof(word));
}

}  // namespace thinwire
