// How K or V of one layer lie in pages of codes of 1 to 8 bits.
//
// A row (one token, one KV head) holds a head's channels in the head's own order, cut into units of
// 16: channel order[16 u + i] is lane i of unit u, and all codes of unit u have bits[u] bits.
//
// Bytes of a row: consecutive units are gathered into words of at most 32 bits a lane, each word
// taking as many whole units as fit. In a word, unit after unit lies from the lowest bit up, the
// same in all 16 lanes, so that unpacking a unit is one shift of 16 lanes and a mask. A word of w
// bits is stored without gaps in parts, for each bit set in w from 32 down to 1, which hold the
// word's lowest bits first:
//   32, 16, 8: one little-endian integer of that many bits a lane, lane after lane;
//   4, 2, 1:   8, 4 or 2 bytes as one little-endian integer. Of 4 and 2, lane i is the field at bit
//              size * (i / 2), plus for odd i half of the integer's bits; of 1, bit i is lane i.
// Words follow each other; a row of w_1, w_2, ... has 2 (w_1 + w_2 + ...) bytes = 2 sum(bits).
//
// On a GPU rows of mixed widths lie in planes instead (paired()): units 2 k and 2 k + 1 make plane
// k, of w bits a lane, 2 w bytes. Its lanes follow each other without gaps, each with the even
// unit's code in the low bits and the odd one's above: any two lanes are 2 w consecutive bits,
// which one shift brings into a register.
//
// Rows of all heads of a layer are as long as the widest; what is left of a shorter one is zero.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/core/buffer.h"
#include "kernels/core/device.h"

namespace thinwire {

// Channels in a unit.
inline constexpr int64_t kKvUnit = 16;

// The codes of one KV head: x[order[j]] ~= step[j] * (code[j] - zero[j]).
struct KvHeadCodes {
  std::vector<int32_t> order;  // [head_dim] position j holds channel order[j]; a permutation
  std::vector<uint8_t> bits;   // [head_dim / 16] of each unit, 1 to 8, descending (equal: allowed)
  std::vector<float> step;     // [head_dim] by position; > 0, finite
  std::vector<float> zero;     // [head_dim] by position; finite, need not be an integer
};

// A part of a word, see above.
struct KvWordPart {
  int32_t size;    // bits a lane: 32, 16, 8, 4, 2 or 1
  int32_t shift;   // lowest bit in the word
  int32_t offset;  // bytes from the row's first
};

// Units [first_unit, first_unit + num_units) of a row.
struct KvWord {
  int32_t first_unit;
  int32_t num_units;
  int32_t num_parts;
  KvWordPart parts[6];
};

// Where a unit lies in its word.
struct KvUnit {
  int32_t bits;
  int32_t shift;
};

// Where bits of a position's code lie: `size` bits from bit `bit` of the row are bits `shift` and
// up of the code.
struct KvPiece {
  uint16_t bit;
  uint8_t size;  // 0: there are no more pieces
  uint8_t shift;
};
inline constexpr int kMaxKvPieces = 4;

// The codes of all KV heads of one layer's K or V on one rank, checked and laid out. Move-only.
class KvCodes {
 public:
  // heads: not empty. head_dim: 16 to 4096. InvalidArgument names the head and what is wrong with
  // it. Unimplemented when head_dim is not a multiple of 16 or in a build without the device. On a
  // GPU, kernels find orders, steps and zeros in its memory; the accessors below are the host's.
  static absl::StatusOr<KvCodes> Create(int64_t head_dim, std::vector<KvHeadCodes> heads,
                                        Device device);

  KvCodes(KvCodes&&) noexcept = default;
  KvCodes& operator=(KvCodes&&) noexcept = default;

  int64_t num_heads() const { return static_cast<int64_t>(heads_.size()); }
  int64_t head_dim() const { return head_dim_; }
  Device device() const { return device_; }

  // Bytes of a row of any head; head_dim * bits / 8 where all units have equal bits.
  int64_t row_bytes() const { return row_bytes_; }

  // Of those, what head h's codes take; the others are zero.
  int64_t used_row_bytes(int64_t h) const;

  const KvHeadCodes& head(int64_t h) const { return heads_[static_cast<size_t>(h)]; }

  // Whether rows lie in planes: on a GPU, heads of 64 channels, and of 128 unless all units of all
  // heads have 3, all 4 or all 8 bits.
  bool paired() const { return paired_; }

  // The row layout of head h where it is not paired: its words, and its units [head_dim / 16].
  absl::Span<const KvWord> words(int64_t h) const { return layouts_[static_cast<size_t>(h)].words; }
  absl::Span<const KvUnit> units(int64_t h) const { return layouts_[static_cast<size_t>(h)].units; }

  // The pieces of position `position` of head h, lowest bits first.
  std::array<KvPiece, kMaxKvPieces> pieces(int64_t h, int64_t position) const;

  // On a GPU, what kernels read: of all positions of all heads int32 orders, fp32 steps, fp32 zeros
  // and KvPiece[kMaxKvPieces], then layouts of heads (attention_cuda.h), one array after the other.
  // Null on the CPU.
  const std::byte* device_tables() const { return tables_.data(); }

  // codes[j] of position j to the row_bytes() bytes of a row, and back. Slow; for tests and tools.
  void PackRow(int64_t h, absl::Span<const uint8_t> codes, uint8_t* row) const;
  void UnpackRow(int64_t h, const uint8_t* row, absl::Span<uint8_t> codes) const;

 private:
  struct Layout {
    std::vector<KvWord> words;
    std::vector<KvUnit> units;
  };

  KvCodes() = default;

  int64_t head_dim_ = 0;
  int64_t row_bytes_ = 0;
  bool paired_ = false;
  Device device_;
  Buffer tables_;
  std::vector<KvHeadCodes> heads_;
  std::vector<Layout> layouts_;
};

}  // namespace thinwire
