// IEEE half (fp16) and bfloat16 as storage types, with exact scalar conversions.
// Bulk conversion is kernels/convert; these are the reference that it is tested against.
#pragma once

#include <bit>
#include <cstdint>

namespace thinwire {

// 1 sign, 5 exponent, 10 mantissa bits. Largest finite value 65504, smallest subnormal 2^-24.
struct Half {
  uint16_t bits = 0;
};

// The upper half of an IEEE float: 1 sign, 8 exponent, 7 mantissa bits.
struct BFloat16 {
  uint16_t bits = 0;
};

static_assert(sizeof(Half) == 2 && sizeof(BFloat16) == 2);

// Exact.
inline float ToFloat(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 0x1fu;
  const uint32_t mantissa = h.bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Exact.
inline float ToFloat(BFloat16 b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b.bits) << 16);
}

inline float ToFloat(float f) { return f; }

// Rounds to nearest, ties to even; overflows to infinity; NaN stays NaN (quiet).
inline Half ToHalf(float value) {
  const uint32_t in = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((in >> 16) & 0x8000u);
  const uint32_t magnitude = in & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) {
    const uint16_t payload = magnitude > 0x7f800000u ? 0x200u | ((magnitude >> 13) & 0x3ffu) : 0;
    return Half{static_cast<uint16_t>(sign | 0x7c00u | payload)};
  }
  if (magnitude >= 0x477ff000u) return Half{static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the result to units of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    const uint32_t units = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
    return Half{static_cast<uint16_t>(sign | units)};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return Half{static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

// Rounds to nearest, ties to even; NaN stays NaN (quiet).
inline BFloat16 ToBFloat16(float value) {
  const uint32_t in = std::bit_cast<uint32_t>(value);
  if ((in & 0x7fffffffu) > 0x7f800000u) {
    return BFloat16{static_cast<uint16_t>((in >> 16) | 0x40u)};
  }
  return BFloat16{static_cast<uint16_t>((in + 0x7fffu + ((in >> 16) & 1u)) >> 16)};
}

}  // namespace thinwire
