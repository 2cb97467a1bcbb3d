// Codes of 2, 3, 4 or 8 bits as a string of bits, least significant first: how GPTQ tensors pack
// them. Private to this folder.
#pragma once

#include <cstdint>
#include <cstring>

namespace thinwire {

// 8 codes are `bits` bytes.
inline constexpr int kCodesPerRun = 8;

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

// `num_runs` times 8 codes, one a byte, from `num_runs` times `bits` bytes.
inline void UnpackCodes(const void* packed, int bits, int num_runs, uint8_t* codes) {
  for (int run = 0; run < num_runs; ++run) {
    uint64_t value = 0;
    std::memcpy(&value, static_cast<const uint8_t*>(packed) + run * bits, bits);
    value = SpreadCodes(value, bits);
    std::memcpy(codes + run * kCodesPerRun, &value, sizeof(value));
  }
}

// The inverse.
inline void PackCodes(const uint8_t* codes, int bits, int num_runs, void* packed) {
  for (int run = 0; run < num_runs; ++run) {
    uint64_t value = 0;
    std::memcpy(&value, codes + run * kCodesPerRun, sizeof(value));
    value = GatherCodes(value, bits);
    std::memcpy(static_cast<uint8_t*>(packed) + run * bits, &value, bits);
  }
}

}  // namespace thinwire
