#include "kernels/attention/kv_codes.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/attention/attention_device.h"
#include "kernels/core/check.h"
#include "kernels/core/has_cuda.h"
#include "kernels/core/status_macros.h"

namespace thinwire {
namespace {

constexpr int64_t kMaxHeadDim = 4096;
constexpr int32_t kWordBits = 32;

absl::Status CheckHead(int64_t head_dim, const KvHeadCodes& head) {
  const auto expect_size = [](absl::string_view name, size_t found, int64_t expected) {
    if (static_cast<int64_t>(found) == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has ", found, " entries: expected ", expected));
  };
  TW_RETURN_IF_ERROR(expect_size("order", head.order.size(), head_dim));
  TW_RETURN_IF_ERROR(expect_size("bits", head.bits.size(), head_dim / kKvUnit));
  TW_RETURN_IF_ERROR(expect_size("step", head.step.size(), head_dim));
  TW_RETURN_IF_ERROR(expect_size("zero", head.zero.size(), head_dim));
  std::vector<bool> seen(static_cast<size_t>(head_dim), false);
  for (size_t j = 0; j < head.order.size(); ++j) {
    const int32_t channel = head.order[j];
    if (channel < 0 || channel >= head_dim || seen[static_cast<size_t>(channel)]) {
      return absl::InvalidArgumentError(absl::StrCat("order has channel ", channel, " at position ",
                                                     j, ": expected each of 0 to ", head_dim - 1,
                                                     " once"));
    }
    seen[static_cast<size_t>(channel)] = true;
  }
  for (size_t u = 0; u < head.bits.size(); ++u) {
    const int bits = head.bits[u];
    if (bits < 1 || bits > 8 || (u > 0 && bits > head.bits[u - 1])) {
      return absl::InvalidArgumentError(
          absl::StrCat("bits of unit ", u, " are ", bits, ": expected 1 to 8, descending"));
    }
  }
  for (size_t j = 0; j < head.step.size(); ++j) {
    if (!std::isfinite(head.step[j]) || head.step[j] <= 0.0f) {
      return absl::InvalidArgumentError(absl::StrCat("step of position ", j, " is ", head.step[j],
                                                     ": expected positive and finite"));
    }
    if (!std::isfinite(head.zero[j])) {
      return absl::InvalidArgumentError(
          absl::StrCat("zero of position ", j, " is ", head.zero[j], ": expected finite"));
    }
  }
  return absl::OkStatus();
}

// Cuts a word of `bits` bits a lane, which begins `offset` bytes into the row, into its parts.
void AddParts(int32_t bits, int32_t offset, KvWord& word) {
  int32_t shift = 0;
  for (int32_t size = kWordBits; size > 0; size /= 2) {
    if ((bits & size) == 0) continue;
    word.parts[word.num_parts++] = {size, shift, offset};
    shift += size;
    offset += 2 * size;
  }
}

// Lowest bit of a lane's field in the integer of a part of 4, 2 or 1 bits a lane.
int SubByteBit(int32_t size, int64_t lane) {
  if (size == 1) return static_cast<int>(lane);
  return static_cast<int>(size * (lane / 2) + lane % 2 * 8 * size);
}

// Bits of a row's field, from the lowest of the part's bytes.
int64_t FieldBit(const KvWordPart& part, int64_t lane) {
  return 8 * int64_t{part.offset} +
         (part.size >= 8 ? part.size * lane : SubByteBit(part.size, lane));
}

bool LiesInPlanes(int64_t head_dim, const std::vector<KvHeadCodes>& heads, Device device) {
  if (device.kind != DeviceKind::kCuda || (head_dim != 64 && head_dim != 128)) return false;
  if (head_dim == 64) return true;
  const uint8_t first = heads[0].bits[0];
  const bool even = std::all_of(heads.begin(), heads.end(), [&](const KvHeadCodes& head) {
    return std::all_of(head.bits.begin(), head.bits.end(),
                       [&](uint8_t bits) { return bits == first; });
  });
  return !even || (first != 3 && first != 4 && first != 8);
}

// The piece of a position in planes.
KvPiece PieceInPlane(const KvHeadCodes& head, int64_t position) {
  const int64_t u = position / kKvUnit, lane = position % kKvUnit;
  int64_t before = 0;  // bits of a lane in earlier planes
  for (int64_t i = 0; i < u / 2 * 2; ++i) before += head.bits[static_cast<size_t>(i)];
  const auto even = static_cast<size_t>(u / 2 * 2);
  const int64_t width = head.bits[even] + head.bits[even + 1];
  const int64_t in_lane = u % 2 == 0 ? 0 : head.bits[even];
  return {static_cast<uint16_t>(kKvUnit * before + width * lane + in_lane),
          head.bits[static_cast<size_t>(u)], 0};
}

}  // namespace

absl::StatusOr<KvCodes> KvCodes::Create(int64_t head_dim, std::vector<KvHeadCodes> heads,
                                        Device device) {
  TW_RETURN_IF_ERROR(CheckDeviceUsable(device));
  if (head_dim < 1 || head_dim > kMaxHeadDim || heads.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("codes of ", heads.size(), " KV heads of ",
                                                   head_dim, " channels: expected at least 1 of ",
                                                   kKvUnit, " to ", kMaxHeadDim));
  }
  if (head_dim % kKvUnit != 0) {
    return absl::UnimplementedError(absl::StrCat("codes of KV heads of ", head_dim,
                                                 " channels: expected a multiple of ", kKvUnit));
  }
  KvCodes codes;
  codes.head_dim_ = head_dim;
  codes.device_ = device;
  for (size_t h = 0; h < heads.size(); ++h) {
    TW_RETURN_IF_ERROR(
        Annotate(CheckHead(head_dim, heads[h]), absl::StrCat("codes of KV head ", h)));
  }
  codes.paired_ = LiesInPlanes(head_dim, heads, device);
  for (size_t h = 0; h < heads.size(); ++h) {
    Layout layout;
    int32_t offset = 0;
    const auto num_units = static_cast<int32_t>(heads[h].bits.size());
    for (int32_t u = 0; u < num_units;) {
      KvWord word = {u, 0, 0, {}};
      int32_t bits = 0;
      for (; u < num_units && bits + heads[h].bits[static_cast<size_t>(u)] <= kWordBits; ++u) {
        layout.units.push_back({heads[h].bits[static_cast<size_t>(u)], bits});
        bits += layout.units.back().bits;
        ++word.num_units;
      }
      AddParts(bits, offset, word);
      offset += 2 * bits;
      layout.words.push_back(word);
    }
    codes.row_bytes_ = std::max<int64_t>(codes.row_bytes_, offset);
    if (codes.paired_) layout = {};
    codes.layouts_.push_back(std::move(layout));
  }
  codes.heads_ = std::move(heads);
  if constexpr (kHasCuda) {
    if (device.kind == DeviceKind::kCuda) {
      TW_ASSIGN_OR_RETURN(codes.tables_, KvTablesOnDevice(codes));
    }
  }
  return codes;
}

int64_t KvCodes::used_row_bytes(int64_t h) const {
  int64_t bytes = 0;
  for (const uint8_t bits : head(h).bits) bytes += 2 * bits;
  return bytes;
}

std::array<KvPiece, kMaxKvPieces> KvCodes::pieces(int64_t h, int64_t position) const {
  std::array<KvPiece, kMaxKvPieces> pieces = {};
  if (paired_) {
    pieces[0] = PieceInPlane(head(h), position);
    return pieces;
  }
  const int64_t u = position / kKvUnit, lane = position % kKvUnit;
  const auto [bits, shift] = units(h)[static_cast<size_t>(u)];
  size_t count = 0;
  for (const KvWord& word : words(h)) {
    if (u < word.first_unit || u >= word.first_unit + word.num_units) continue;
    for (int32_t p = 0; p < word.num_parts; ++p) {
      const KvWordPart& part = word.parts[p];
      const int32_t begin = std::max(part.shift, shift);
      const int32_t end = std::min(part.shift + part.size, shift + bits);
      if (begin >= end) continue;
      TW_CHECK_LT(count, pieces.size());
      pieces[count++] = {static_cast<uint16_t>(FieldBit(part, lane) + begin - part.shift),
                         static_cast<uint8_t>(end - begin), static_cast<uint8_t>(begin - shift)};
    }
  }
  return pieces;
}

void KvCodes::PackRow(int64_t h, absl::Span<const uint8_t> codes, uint8_t* row) const {
  TW_CHECK_EQ(static_cast<int64_t>(codes.size()), head_dim_);
  std::fill(row, row + row_bytes_, uint8_t{0});
  if (paired_) {
    for (int64_t j = 0; j < head_dim_; ++j) {
      const KvPiece piece = PieceInPlane(head(h), j);
      TW_CHECK_LT(codes[static_cast<size_t>(j)], 1 << piece.size);
      for (int b = 0; b < piece.size; ++b) {
        const int bit = codes[static_cast<size_t>(j)] >> b & 1;
        row[(piece.bit + b) / 8] |= static_cast<uint8_t>(bit << ((piece.bit + b) % 8));
      }
    }
    return;
  }
  for (const KvWord& word : words(h)) {
    for (int64_t lane = 0; lane < kKvUnit; ++lane) {
      uint32_t value = 0;
      for (int32_t u = word.first_unit; u < word.first_unit + word.num_units; ++u) {
        const auto [bits, shift] = units(h)[static_cast<size_t>(u)];
        const uint32_t code = codes[static_cast<size_t>(u * kKvUnit + lane)];
        TW_CHECK_LT(code, 1u << bits);
        value |= code << shift;
      }
      for (int32_t p = 0; p < word.num_parts; ++p) {
        const int64_t first = FieldBit(word.parts[p], lane);
        for (int32_t b = 0; b < word.parts[p].size; ++b) {
          const uint32_t bit = value >> (word.parts[p].shift + b) & 1u;
          row[(first + b) / 8] |= static_cast<uint8_t>(bit << ((first + b) % 8));
        }
      }
    }
  }
}

void KvCodes::UnpackRow(int64_t h, const uint8_t* row, absl::Span<uint8_t> codes) const {
  TW_CHECK_EQ(static_cast<int64_t>(codes.size()), head_dim_);
  if (paired_) {
    for (int64_t j = 0; j < head_dim_; ++j) {
      const KvPiece piece = PieceInPlane(head(h), j);
      int code = 0;
      for (int b = 0; b < piece.size; ++b) {
        code |= (row[(piece.bit + b) / 8] >> ((piece.bit + b) % 8) & 1) << b;
      }
      codes[static_cast<size_t>(j)] = static_cast<uint8_t>(code);
    }
    return;
  }
  for (const KvWord& word : words(h)) {
    for (int64_t lane = 0; lane < kKvUnit; ++lane) {
      uint32_t value = 0;
      for (int32_t p = 0; p < word.num_parts; ++p) {
        const int64_t first = FieldBit(word.parts[p], lane);
        for (int32_t b = 0; b < word.parts[p].size; ++b) {
          const uint32_t bit = row[(first + b) / 8] >> ((first + b) % 8) & 1u;
          value |= bit << (word.parts[p].shift + b);
        }
      }
      for (int32_t u = word.first_unit; u < word.first_unit + word.num_units; ++u) {
        const auto [bits, shift] = units(h)[static_cast<size_t>(u)];
        codes[static_cast<size_t>(u * kKvUnit + lane)] =
            static_cast<uint8_t>(value >> shift & ((1u << bits) - 1u));
      }
    }
  }
}

}  // namespace thinwire
