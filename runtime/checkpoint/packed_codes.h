// Codes of 2, 3, 4 or 8 bits as a string of bits, least significant first: how GPTQ tensors pack
// them. Private to this folder.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/core/check.h"

namespace thinwire {

inline constexpr int kCodesPerRun = 8;    // `bits` bytes
inline constexpr int kCodesPerUnit = 32;  // `bits` words
inline constexpr int kMaxCodeBits = 8;

// The low 8 * bits bits of `packed` as 8 codes, one in each byte.
inline uint64_t SpreadCodes(uint64_t packed, int bits) {
  const auto low = [](int n) { return (uint64_t{1} << n) - 1; };
  if (bits == 8) return packed;
  // In halves: 4 codes to a 32-bit lane, 2 to a 16-bit lane, 1 to a byte.
  packed = (packed | packed << (32 - 4 * bits)) & low(4 * bits) * 0x0000000100000001;
  packed = (packed | packed << (16 - 2 * bits)) & low(2 * bits) * 0x0001000100010001;
  return (packed | packed << (8 - bits)) & low(bits) * 0x0101010101010101;
}

// The inverse; the bytes must be below 2^bits.
inline uint64_t GatherCodes(uint64_t codes, int bits) {
  const auto low = [](int n) { return (uint64_t{1} << n) - 1; };
  if (bits == 8) return codes;
  codes = (codes | codes >> (8 - bits)) & low(2 * bits) * 0x0001000100010001;
  codes = (codes | codes >> (16 - 2 * bits)) & low(4 * bits) * 0x0000000100000001;
  return (codes | codes >> (32 - 4 * bits)) & low(8 * bits);
}

// 32 codes, one a byte, from kBits words.
template <int kBits>
inline void UnpackUnit(const uint32_t* words, uint8_t* codes) {
  for (int run = 0; run < kCodesPerUnit / kCodesPerRun; ++run) {
    const int word = run * kCodesPerRun * kBits / 32;
    const int shift = run * kCodesPerRun * kBits % 32;
    uint64_t value = words[word];
    if (word + 1 < kBits) value |= uint64_t{words[word + 1]} << 32;
    value >>= shift;
    if (kBits < 8) value &= (uint64_t{1} << (kBits * kCodesPerRun % 64)) - 1;
    value = SpreadCodes(value, kBits);
    std::memcpy(&codes[run * kCodesPerRun], &value, sizeof(value));
  }
}

// The inverse.
template <int kBits>
inline void PackUnit(const uint8_t* codes, uint32_t* words) {
  for (int word = 0; word < kBits; ++word) words[word] = 0;
  for (int run = 0; run < kCodesPerUnit / kCodesPerRun; ++run) {
    const int word = run * kCodesPerRun * kBits / 32;
    const int shift = run * kCodesPerRun * kBits % 32;
    uint64_t value;
    std::memcpy(&value, &codes[run * kCodesPerRun], sizeof(value));
    value = GatherCodes(value, kBits) << shift;
    words[word] |= static_cast<uint32_t>(value);
    if (word + 1 < kBits) words[word + 1] |= static_cast<uint32_t>(value >> 32);
  }
}

// Calls work.operator()<kBits>() for bits of 2, 3, 4 or 8.
template <typename Work>
inline void WithBits(int bits, const Work& work) {
  switch (bits) {
    case 2:
      return work.template operator()<2>();
    case 3:
      return work.template operator()<3>();
    case 4:
      return work.template operator()<4>();
    case 8:
      return work.template operator()<8>();
    default:
      TW_CHECK(false);
  }
}

}  // namespace thinwire
