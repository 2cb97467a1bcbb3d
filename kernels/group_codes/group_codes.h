// Rows of activations as codes in rotated groups: few bits an element without any calibration.
//
// A row is cut into groups of G neighbouring channels. Each group x is rotated by the orthonormal
// Walsh-Hadamard matrix, u = H x, H[i][j] = (-1)^popcount(i & j) / sqrt(G), which spreads an
// outlier over its group and makes any group look normally distributed; then
// u[i] ~= S * level[code[i]], with one scale S a group and the same levels, in [-1, 1], for all
// groups. H is its own inverse.
//
// A coded row has GroupCodesFormat::row_bytes() bytes: first one scale byte for each group, then
// the groups' codes, one group after another, each
//
//   bits 8: G bytes, code i in byte i
//   bits 4, 5, 6: the low 4 bits of the codes in ceil(G / 2) bytes, code i in the low half of byte
//     i for i < ceil(G / 2), in the high half of byte i - ceil(G / 2) beyond; then for 5 (6) bits
//     the remaining 1 (2) bits in ceil(G / 8) (ceil(G / 4)) bytes, code i in bits (i % 8) of byte
//     i / 8 (bits 2 (i % 4) and above of byte i / 4). Unused bits are 0.
//
// Scale byte e: 0: all of the group is 0; 255: all of it is NaN (a value was not finite); else
// S = 2^((e - 128) / 8), 1.7e-5 to 5.5e4: larger groups saturate.
// Levels: bits 8, 6, 5: level[k] = (2 k + 1 - n) / (n - 1) for k < n = 2^bits; bits 4:
// kFourBitLevels, those of the least mean squared error for 64 normal variates divided by their
// largest (Lloyd, IEEE Trans. Inf. Theory 28, 1982).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/core/stream.h"
#include "kernels/core/tensor_view.h"

namespace thinwire {

// level[8 + i]; level[7 - i] = -level[8 + i].
inline constexpr float kFourBitLevels[8] = {0.04993f, 0.15084f, 0.25462f, 0.36416f,
                                            0.48339f, 0.61875f, 0.78173f, 1.0f};

struct GroupCodesFormat {
  int bits = 8;       // 8, 6, 5 or 4
  int64_t width = 0;  // channels of a row, at least 1

  // The largest power of two that divides width, at most 128 for 8 bits, else 64.
  int64_t group() const;
  int64_t num_groups() const { return width / group(); }
  int64_t group_bytes() const;  // of a group's codes, without its scale
  int64_t row_bytes() const { return num_groups() * (1 + group_bytes()); }
};

struct EncodeGroupsArgs {
  GroupCodesFormat format;
  ConstTensorView x;  // [num_rows, width] fp32 | fp16 | bf16; rows may be strided
  TensorView codes;   // [num_rows, row_bytes] uint8, contiguous
};

// Rotates in fp32. The scale of a group is the one with the least squared error among the smallest
// that clips nothing and the next 4 (bits 4, 5) or 2 (bits 6, 8) below, the larger of equals; the
// code is that of the nearest level. The same bits for the same row whatever the other rows, their
// number and the number of threads. num_rows may be 0. InvalidArgument names what does not fit;
// Unimplemented on a device without this operator.
absl::Status EncodeGroups(const EncodeGroupsArgs& args, Stream& stream);

struct DecodeGroupsArgs {
  GroupCodesFormat format;
  // At least one; each [num_rows, row_bytes] uint8, rows contiguous.
  absl::Span<const ConstTensorView> parts;
  TensorView y;             // [num_rows, width] fp32 | fp16 | bf16; rows may be strided
  bool accumulate = false;  // y += instead of y =
};

// y = the sum of the decoded parts. Terms S * level are added in the order of `parts` in fp32,
// rotated back once, in fp32, and rounded once to y's dtype: the same bits on every rank that has
// the same bytes, and for a row whatever the other rows. Otherwise as EncodeGroups.
absl::Status DecodeGroups(const DecodeGroupsArgs& args, Stream& stream);

// The definitions, in double (but for the comparison of scales' errors, which is in double too, so
// that ties may fall otherwise), for tests.
absl::Status EncodeGroupsReference(const EncodeGroupsArgs& args);
absl::Status DecodeGroupsReference(const DecodeGroupsArgs& args);

}  // namespace thinwire
