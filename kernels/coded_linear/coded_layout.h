// How CodedWeights lie in memory. Private to kernels/coded_linear.
//
// Sixteen rows make a panel, so that a vector holds the same columns of up to sixteen rows, one in
// each 32-bit lane: sums need no addition across lanes, and a value of x is multiplied with all
// rows at once. In a panel follow the groups, in a group its blocks: the codes of 16 rows and
// BlockColumns() columns. A group's last block is filled up with zero bits.
//
// The bytes of a block, with row r of the panel, k = 0..3 and code(c) that of the row in column c
// of the block:
//   4 bits, 8 columns, 64 bytes: byte 4 r + k is code(k) | code(4 + k) << 4.
//   8 bits, 4 columns, 64 bytes: byte 4 r + k is code(k) - 128, a signed byte.
//   3 bits, 16 columns, 96 bytes: byte 4 r + k has the two low bits of code(4 j + k) at bit 2 j,
//     j = 0..3; byte 64 + (4 r + k) % 32 has its high bit at bit j + 4 * ((4 r + k) / 32).
//
// After the codes of all panels come the scales, fp16 [panel, group, 16 rows], and the zeros, uint8
// [panel, group, 16 rows].
#pragma once

#include <cstdint>

namespace thinwire {

inline constexpr int64_t kPanelRows = 16;

constexpr int64_t BlockColumns(int bits) { return bits == 3 ? 16 : bits == 4 ? 8 : 4; }
constexpr int64_t BlockBytes(int bits) { return bits == 3 ? 96 : 64; }

// The code of row `row` of the panel in column `column` of the block.
inline int GetCode(const uint8_t* block, int bits, int64_t row, int64_t column) {
  const int64_t at = 4 * row + column % 4;
  const auto j = static_cast<int>(column / 4);
  if (bits == 4) return block[at] >> (4 * j) & 15;
  if (bits == 8) return block[at] ^ 128;
  const auto high_bit = static_cast<int>(j + at / 32 * 4);
  return (block[at] >> (2 * j) & 3) | (block[64 + at % 32] >> high_bit & 1) << 2;
}

// Replaces it.
inline void SetCode(uint8_t* block, int bits, int64_t row, int64_t column, int code) {
  const int64_t at = 4 * row + column % 4;
  const auto j = static_cast<int>(column / 4);
  const auto put = [](uint8_t& byte, int mask, int shift, int value) {
    byte = static_cast<uint8_t>((byte & ~(mask << shift)) | value << shift);
  };
  if (bits == 4) {
    put(block[at], 15, 4 * j, code);
  } else if (bits == 8) {
    block[at] = static_cast<uint8_t>(code ^ 128);
  } else {
    put(block[at], 3, 2 * j, code & 3);
    put(block[64 + at % 32], 1, static_cast<int>(j + at / 32 * 4), code >> 2);
  }
}

}  // namespace thinwire
