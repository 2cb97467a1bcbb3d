// SHA-256 (FIPS 180-4): names the text that a model was calibrated on, and KV pages.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/types/span.h"

namespace thinwire {

class Sha256 {
 public:
  void Update(absl::Span<const std::byte> bytes);

  // No call may follow.
  std::array<std::byte, 32> Digest();
  // 64 lower-case hex digits. No call may follow.
  std::string HexDigest();

 private:
  void AddBlock(const std::byte* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> block_ = {};
  uint64_t num_bytes_ = 0;  // so far; the last num_bytes_ % 64 of them are in block_
};

std::string Sha256Hex(absl::Span<const std::byte> bytes);

}  // namespace thinwire
