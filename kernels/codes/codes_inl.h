// Vectors of fp32 as codes of one byte, for CPU kernels. A Highway per-target header: include it
// after hwy/foreach_target.h.

// Not #pragma once: each target sees the contents once.
#if defined(THINWIRE_KERNELS_CODES_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_KERNELS_CODES_CODES_INL_H_
#undef THINWIRE_KERNELS_CODES_CODES_INL_H_
#else
#define THINWIRE_KERNELS_CODES_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/convert/convert_inl.h"

HWY_BEFORE_NAMESPACE();
namespace thinwire {
namespace HWY_NAMESPACE {

// `count` bytes, at most Lanes(d), as floats; zeros beyond.
template <class D>
HWY_INLINE hn::Vec<D> LoadMaxCodes(D d, const uint8_t* HWY_RESTRICT from, size_t count) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint8_t, D> d8;
  if (count == hn::Lanes(d)) return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, from)));
  HWY_ALIGN uint8_t padded[HWY_MAX_BYTES / sizeof(float)] = {};
  for (size_t i = 0; i < count; ++i) padded[i] = from[i];
  return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(d8, padded)));
}

// 2^23 + clamp(round(value), 0, max_code), halves to even: below 2^23, adding it rounds so, and
// leaves the code in the lowest bits. Any code for NaN.
template <class D>
HWY_INLINE hn::Vec<D> RoundAbove(D d, hn::Vec<D> value, hn::Vec<D> max_code) {
  // The bounds are whole numbers: clamping first gives the same.
  const auto clamped = hn::Min(hn::Max(value, hn::Zero(d)), max_code);
  return hn::Add(clamped, hn::Set(d, 8388608.0f));
}

// clamp(round(value), 0, max_code), halves to even.
template <class D>
HWY_INLINE hn::Vec<D> RoundCodes(D d, hn::Vec<D> value, hn::Vec<D> max_code) {
  return hn::Sub(RoundAbove(d, value, max_code), hn::Set(d, 8388608.0f));
}

// Stores `count`, at most Lanes(d), codes for values.
template <class D>
HWY_INLINE void StoreCodes(D d, hn::Vec<D> values, const uint8_t* HWY_RESTRICT max_codes,
                           uint8_t* HWY_RESTRICT to, size_t count) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint8_t, D> d8;
  const auto rounded = RoundAbove(d, values, LoadMaxCodes(d, max_codes, count));
  const auto codes = hn::TruncateTo(d8, hn::BitCast(du, rounded));
  if (count == hn::Lanes(d)) {
    hn::StoreU(codes, d8, to);
    return;
  }
  HWY_ALIGN uint8_t padded[HWY_MAX_BYTES / sizeof(float)];
  hn::StoreU(codes, d8, padded);
  for (size_t i = 0; i < count; ++i) to[i] = padded[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace thinwire
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
