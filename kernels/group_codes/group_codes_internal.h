// What the files of kernels/group_codes share: argument checks, scales and the backends.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/core/stream.h"
#include "kernels/group_codes/group_codes.h"

namespace thinwire {

// InvalidArgument with what the structs promise and what was found.
absl::Status CheckEncodeGroupsArgs(const EncodeGroupsArgs& args);
absl::Status CheckDecodeGroupsArgs(const DecodeGroupsArgs& args);

// Checked arguments in host memory, CPU stream, at least one row.
void EncodeGroupsCpu(const EncodeGroupsArgs& args, Stream& stream);
void DecodeGroupsCpu(const DecodeGroupsArgs& args, Stream& stream);

// Groups of fewer channels than a vector may have go one value at a time.
inline constexpr int64_t kSmallestVectorGroup = 16;

// One value at a time: groups [begin, end), counted through all rows.
void EncodeGroupsScalar(const EncodeGroupsArgs& args, int64_t begin, int64_t end);
void DecodeGroupsScalar(const DecodeGroupsArgs& args, int64_t begin, int64_t end);

// The same on a GPU, in builds with CUDA: the same bytes, and the same bits. InvalidArgument for
// more than 64 parts.
absl::Status EncodeGroupsCuda(const EncodeGroupsArgs& args, Stream& stream);
absl::Status DecodeGroupsCuda(const DecodeGroupsArgs& args, Stream& stream);

inline constexpr uint8_t kZeroGroup = 0;
inline constexpr uint8_t kNanGroup = 255;
inline constexpr int kLeastScaleByte = 1;
inline constexpr int kLargestScaleByte = 254;

// How many scales the encoder compares.
constexpr int NumScaleCandidates(int bits) { return bits <= 5 ? 5 : 3; }

// 2^(k / 8)
inline constexpr double kEighths[8] = {1.0,
                                       1.0905077326652577,
                                       1.1892071150027210,
                                       1.2968395546510096,
                                       1.4142135623730951,
                                       1.5422108254079407,
                                       1.6817928305074290,
                                       1.8340080864093424};

struct ScaleTables {
  std::array<float, 256> scale;    // of each scale byte; kZeroGroup and kNanGroup too
  std::array<float, 256> inverse;  // 1 / scale; 0 for kZeroGroup and kNanGroup
};

constexpr ScaleTables MakeScaleTables() {
  ScaleTables tables = {};
  for (int byte = kLeastScaleByte; byte <= kLargestScaleByte; ++byte) {
    double power = 1.0;
    for (int octave = byte / 8; octave > 16; --octave) power *= 2.0;
    for (int octave = byte / 8; octave < 16; ++octave) power *= 0.5;
    tables.scale[byte] = static_cast<float>(power * kEighths[byte % 8]);
    tables.inverse[byte] = static_cast<float>(1.0 / (power * kEighths[byte % 8]));
  }
  tables.scale[kNanGroup] = std::bit_cast<float>(0x7fc00000u);
  return tables;
}

inline constexpr ScaleTables kScaleTables = MakeScaleTables();

// The byte of the smallest scale that is at least `largest` (finite, above 0), as far as there is
// one: by comparing mantissas, since a logarithm may round to the wrong side.
inline int SmallestScaleByte(float largest) {
  const uint32_t bits = std::bit_cast<uint32_t>(largest);
  const float mantissa = std::bit_cast<float>((bits & 0x007fffffu) | 0x3f800000u);
  int byte = 128 + 8 * (static_cast<int>(bits >> 23) - 127);
  for (int k = 0; k < 8; ++k) byte += static_cast<float>(kEighths[k]) < mantissa ? 1 : 0;
  return std::clamp(byte, kLeastScaleByte, kLargestScaleByte);
}

// For |value| / scale, times 8, of 4-bit codes: between neighbouring eighths, [b, b + 1) with 7 for
// all above, there is at most one middle between two levels. The nearest level is number
// min(b, 6), or the next from middle[b] on; |value| is | |value - center[b]| - radius[b] | away
// from it.
struct FourBitTables {
  std::array<float, 8> middle;
  std::array<float, 8> center;
  std::array<float, 8> radius;
};

constexpr FourBitTables MakeFourBitTables() {
  FourBitTables tables = {};
  for (int b = 0; b < 8; ++b) {
    const double below = 8.0 * kFourBitLevels[b < 6 ? b : 6];
    const double above = b == 6 ? below : 8.0 * kFourBitLevels[b < 6 ? b + 1 : 7];
    tables.middle[b] = b == 6 ? 8.0f : static_cast<float>((below + above) / 2);
    tables.center[b] = static_cast<float>((below + above) / 2);
    tables.radius[b] = static_cast<float>((above - below) / 2);
  }
  return tables;
}

// b is in bits 15 to 17 of the float 256 + value, which is cheaper than a conversion. Its rounding
// may raise what is 2^-16 below the next b: no matter, since no middle is as close to one.
inline constexpr float kLargestEighth = 7.75f;
inline constexpr float kRaise = 256.0f;
inline constexpr int kRaisedShift = 15;

inline constexpr FourBitTables kFourBitTables = MakeFourBitTables();

constexpr bool OneMiddleBetweenEighths() {
  for (int b = 0; b < 8; ++b) {
    const float middle = kFourBitTables.middle[b];
    if (b != 6 && (middle < b + 0x1p-15 || middle > b + 1 - 0x1p-15)) {
      return false;
    }
  }
  return true;
}
static_assert(OneMiddleBetweenEighths());

}  // namespace thinwire
