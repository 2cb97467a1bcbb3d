// One value at a time: for groups too small for vectors, which occur in small models only, and for
// processors without them. The operations of group_codes_cpu.cc in the same order.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/convert/element.h"
#include "kernels/group_codes/group_codes_internal.h"

namespace thinwire {
namespace {

using Group = std::array<float, 128>;  // the first size() values are used

void Rotate(int64_t size, Group& u) {
  for (int64_t h = 1; h < size; h *= 2) {
    for (int64_t i = 0; i < size; ++i) {
      if ((i & h) != 0) continue;
      const float sum = u[i] + u[i + h];
      u[i + h] = u[i] - u[i + h];
      u[i] = sum;
    }
  }
}

float Norm(int64_t size) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(size))); }

// NaN if any value is.
float LargestMagnitude(int64_t size, const Group& u) {
  float largest = 0.0f;
  for (int64_t i = 0; i < size; ++i) {
    if (!(std::fabs(u[i]) <= largest)) largest = std::fabs(u[i]);
    if (std::isnan(largest)) break;
  }
  return largest;
}

// The number of the level nearest to magnitude / scale, from the smallest of those above 0 on, and
// how far away it is.
struct Nearest {
  int number;
  float distance;

  Nearest(int bits, float magnitude, float inverse_scale) {
    const int last = (1 << (bits - 1)) - 1;
    if (bits == 4) {
      const float eighths = magnitude * (inverse_scale * 8.0f);
      const float raised = std::min(eighths, kLargestEighth) + kRaise;
      const int b = static_cast<int>(std::bit_cast<uint32_t>(raised) >> kRaisedShift) & 7;
      number = std::min(b, 6) + (eighths >= kFourBitTables.middle[b] ? 1 : 0);
      distance = std::fabs(eighths - kFourBitTables.center[b]) - kFourBitTables.radius[b];
    } else {
      const float steps =
          std::fma(magnitude, inverse_scale * (static_cast<float>(last) + 0.5f), -0.5f);
      const float nearest = std::nearbyint(std::min(steps, static_cast<float>(last)));
      number = static_cast<int>(nearest);
      distance = steps - nearest;
    }
  }
};

float SquaredError(int bits, int64_t size, const Group& magnitude, int byte) {
  std::array<float, 16> sums = {};
  for (int64_t i = 0; i < size; ++i) {
    const Nearest nearest(bits, magnitude[i], kScaleTables.inverse[byte]);
    float& sum = sums[i % 16];
    sum = i < 16 ? nearest.distance * nearest.distance
                 : std::fma(nearest.distance, nearest.distance, sum);
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0] * (kScaleTables.scale[byte] * kScaleTables.scale[byte]);
}

void EncodeGroup(const EncodeGroupsArgs& args, int64_t at, uint8_t* scale_byte, uint8_t* to) {
  const int bits = args.format.bits;
  const int64_t size = args.format.group();
  std::fill_n(to, args.format.group_bytes(), uint8_t{0});
  Group x = {};
  for (int64_t i = 0; i < size; ++i) x[i] = static_cast<float>(LoadElement(args.x, at + i));
  Group u = x;
  Rotate(size, u);
  float largest = LargestMagnitude(size, u);
  if (!std::isfinite(largest)) {
    if (!std::isfinite(LargestMagnitude(size, x))) {
      *scale_byte = kNanGroup;
      return;
    }
    // Sums have overflown. The group saturates at any scale: a smaller one has the same codes.
    for (int64_t i = 0; i < size; ++i) u[i] = x[i] * 0x1p-8f;
    Rotate(size, u);
    largest = LargestMagnitude(size, u);
  }
  if (largest == 0.0f) {
    *scale_byte = kZeroGroup;
    return;
  }
  const float norm = Norm(size);
  Group magnitude = {};
  for (int64_t i = 0; i < size; ++i) magnitude[i] = std::fabs(u[i]) * norm;
  const int first = SmallestScaleByte(std::max(largest * norm, std::numeric_limits<float>::min()));
  int best = first;
  float least = SquaredError(bits, size, magnitude, first);
  for (int c = 1; c < NumScaleCandidates(bits); ++c) {
    const int byte = std::max(first - c, kLeastScaleByte);
    const float error = SquaredError(bits, size, magnitude, byte);
    if (error < least) {
      least = error;
      best = byte;
    }
  }
  *scale_byte = static_cast<uint8_t>(best);
  const int64_t half = (size + 1) / 2;
  const int64_t per_byte = bits == 5 ? 8 : 4;  // of the bits beyond 4
  const int middle = 1 << (bits - 1);
  for (int64_t i = 0; i < size; ++i) {
    const int number = Nearest(bits, magnitude[i], kScaleTables.inverse[best]).number;
    const int code = std::signbit(u[i]) ? middle - 1 - number : middle + number;
    if (bits == 8) {
      to[i] = static_cast<uint8_t>(code);
      continue;
    }
    to[i % half] |= static_cast<uint8_t>((code & 15) << (i < half ? 0 : 4));
    if (bits > 4) {
      to[half + i / per_byte] |= static_cast<uint8_t>(code >> 4 << (i % per_byte * (bits - 4)));
    }
  }
}

// Adds S * level to u.
void AddTerms(int bits, int64_t size, int scale_byte, const uint8_t* from, Group& u) {
  const float scale = kScaleTables.scale[scale_byte];
  const int64_t half = (size + 1) / 2;
  const int64_t per_byte = bits == 5 ? 8 : 4;
  const int middle = 1 << (bits - 1);
  const float step = scale * (2.0f / static_cast<float>(2 * middle - 1));
  for (int64_t i = 0; i < size; ++i) {
    int code = bits == 8 ? from[i] : from[i % half] >> (i < half ? 0 : 4) & 15;
    if (bits == 5 || bits == 6) {
      const int high = from[half + i / per_byte] >> (i % per_byte * (bits - 4));
      code |= (high & ((1 << (bits - 4)) - 1)) << 4;
    }
    if (bits == 4) {
      u[i] += scale * (code < 8 ? -kFourBitLevels[7 - code] : kFourBitLevels[code - 8]);
    } else {
      u[i] += step * (static_cast<float>(code - middle) + 0.5f);
    }
  }
}

}  // namespace

void EncodeGroupsScalar(const EncodeGroupsArgs& args, int64_t begin, int64_t end) {
  const GroupCodesFormat& format = args.format;
  const int64_t num_groups = format.num_groups();
  for (int64_t at = begin; at < end; ++at) {
    const int64_t t = at / num_groups;
    const int64_t g = at % num_groups;
    uint8_t* const row = args.codes.mutable_data<uint8_t>() + t * format.row_bytes();
    EncodeGroup(args, t * args.x.row_stride() + g * format.group(), row + g,
                row + num_groups + g * format.group_bytes());
  }
}

void DecodeGroupsScalar(const DecodeGroupsArgs& args, int64_t begin, int64_t end) {
  const GroupCodesFormat& format = args.format;
  const int64_t num_groups = format.num_groups();
  const int64_t size = format.group();
  const float norm = Norm(size);
  for (int64_t at = begin; at < end; ++at) {
    const int64_t t = at / num_groups;
    const int64_t g = at % num_groups;
    Group u = {};
    for (const ConstTensorView& part : args.parts) {
      const uint8_t* const row = part.data<uint8_t>() + t * format.row_bytes();
      AddTerms(format.bits, size, row[g], row + num_groups + g * format.group_bytes(), u);
    }
    Rotate(size, u);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t element = t * args.y.row_stride() + g * size + i;
      const float y = u[i] * norm;
      StoreElement(args.y, element,
                   args.accumulate ? static_cast<float>(LoadElement(args.y, element)) + y : y);
    }
  }
}

}  // namespace thinwire
